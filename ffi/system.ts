/** The floors of the prebuilt libraries (macOS 14; glibc 2.34 with GLIBCXX 3.4.30) and the identity of this CPU, from what the system's own tools say. */
import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { release } from "node:os";
import { Fault } from "../src/core/fault.ts";
import { platformKey, SUPPORTED_PLATFORMS } from "./pin.ts";
import { runCommand } from "./run-child.ts";

/** Dotted numbers, most significant first. */
export type Version = readonly number[];

export interface SystemFacts {
  readonly platform: string;
  readonly arch: string;
  /** Null where it is not macOS or no tool told. */
  readonly macos: Version | null;
  /** `unknown` where no tool told; the loader then has the last word. */
  readonly libc: { readonly kind: "glibc"; readonly version: Version } | { readonly kind: "musl" | "unknown" };
  /** Newest `GLIBCXX_` symbol version of the system's libstdc++; null where it was not found. */
  readonly glibcxx: Version | null;
}

export interface CpuIdentity {
  /** e.g. `AMD EPYC`; for people. */
  readonly name: string;
  /** Changes with the model and with every feature flag. */
  readonly sha256: string;
}

const MACOS_MIN: Version = [14];
const GLIBC_MIN: Version = [2, 34];
const GLIBCXX_MIN: Version = [3, 4, 30];
const TOOL_DEADLINE_MS = 5_000;

/** Negative when `a` is older than `b`; a missing part counts as 0. */
export const compareVersions = (a: Version, b: Version): number => {
  for (let index = 0; index < Math.max(a.length, b.length); index += 1) {
    const difference = (a[index] ?? 0) - (b[index] ?? 0);
    if (difference !== 0) return difference;
  }
  return 0;
};

const toVersion = (text: string): Version => text.split(".").map(Number);

/** Output of `sw_vers -productVersion`. */
export const parseMacosVersion = (text: string): Version | null => {
  const found = /^\s*(\d+(?:\.\d+)*)\s*$/.exec(text)?.[1];
  return found === undefined ? null : toVersion(found);
};

/** Darwin's kernel release (`os.release()`): 20 is macOS 11 … 24 is macOS 15; from 25 on the two differ by one (macOS 26). */
export const macosOfDarwin = (text: string): Version | null => {
  const major = Number(/^(\d+)\./.exec(text)?.[1] ?? Number.NaN);
  if (Number.isNaN(major) || major < 20) return null;
  return [major >= 25 ? major + 1 : major - 9];
};

/** Output (either stream) of `getconf GNU_LIBC_VERSION` or `ldd --version`. */
export const parseLibc = (text: string): SystemFacts["libc"] => {
  // Older musl takes `--version` for a file name, and names only its loader in the complaint.
  if (/musl libc|ld-musl-/.test(text)) return { kind: "musl" };
  const firstLine = text.trimStart().split("\n")[0] ?? "";
  const version = /^glibc (\d+\.\d+)/.exec(firstLine)?.[1] ?? /^ldd \(.*\) (\d+\.\d+)/.exec(firstLine)?.[1];
  return version === undefined ? { kind: "unknown" } : { kind: "glibc", version: toVersion(version) };
};

/** Newest `GLIBCXX_3.4.x` named in the bytes of a libstdc++. */
export const newestGlibcxx = (bytes: Uint8Array): Version | null => {
  const text = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("latin1");
  let newest: Version | null = null;
  for (const match of text.matchAll(/GLIBCXX_(\d+\.\d+(?:\.\d+)?)(?![\d.])/g)) {
    const version = toVersion(match[1] ?? "");
    if (newest === null || compareVersions(version, newest) > 0) newest = version;
  }
  return newest;
};

/** Paths of the 64-bit libstdc++ in the output of `ldconfig -p`. */
export const parseLdconfig = (text: string): readonly string[] =>
  [...text.matchAll(/^\s*libstdc\+\+\.so\.6 \(libc6,(?:x86-64|AArch64)[^)]*\) => (\S+)/gm)].map(
    ([, path = ""]) => path,
  );

const CPU_FIELDS =
  /^(vendor_id|cpu family|model|model name|stepping|flags|Features|CPU implementer|CPU architecture|CPU variant|CPU part|CPU revision)\s*:\s*(.*)$/gm;

/** Contents of `/proc/cpuinfo`: every distinct value of the fields that tell CPUs apart, whatever the number of cores. */
export const parseCpuinfo = (text: string): CpuIdentity => {
  const lines = new Set<string>();
  let name = "";
  for (const [, key = "", value = ""] of text.matchAll(CPU_FIELDS)) {
    lines.add(`${key}=${value}`);
    if (key === "model name" && name === "") name = value.trim();
  }
  const part = /^CPU part\s*:\s*(\S+)/m.exec(text)?.[1];
  return {
    name: name !== "" ? name : `ARM part ${part ?? "unknown"}`,
    sha256: sha256Of([...lines].toSorted().join("\n")),
  };
};

/** Output of `sysctl machdep.cpu.brand_string hw.optional`. */
export const parseSysctlCpu = (text: string): CpuIdentity => ({
  name: /^machdep\.cpu\.brand_string: (.*)$/m.exec(text)?.[1]?.trim() ?? "unknown",
  sha256: sha256Of(text.trim().split("\n").toSorted().join("\n")),
});

const sha256Of = (text: string): string => createHash("sha256").update(text).digest("hex");

/** Throws `system_too_old` when the prebuilt libraries cannot load here. Pure. */
export const checkSystem = (facts: SystemFacts): void => {
  const key = platformKey(facts.platform, facts.arch);
  const refuse = (what: string, hint: string): never => {
    throw new Fault("system_too_old", what, { hint });
  };
  if (!SUPPORTED_PLATFORMS.includes(key))
    refuse(`${key} is not supported`, `supported: ${SUPPORTED_PLATFORMS.join(", ")}`);
  if (facts.macos !== null && compareVersions(facts.macos, MACOS_MIN) < 0)
    refuse(
      `macOS ${facts.macos.join(".")} is too old, ${MACOS_MIN.join(".")} or newer is needed`,
      "run Software Update",
    );
  if (facts.platform !== "linux") return;
  if (facts.libc.kind === "musl")
    refuse("musl systems (Alpine and the like) cannot load the prebuilt libraries", "use a glibc system or container");
  if (facts.libc.kind === "glibc" && compareVersions(facts.libc.version, GLIBC_MIN) < 0)
    refuse(`glibc ${facts.libc.version.join(".")} is too old, ${GLIBC_MIN.join(".")} or newer is needed`, DISTRO_HINT);
  if (facts.glibcxx !== null && compareVersions(facts.glibcxx, GLIBCXX_MIN) < 0)
    refuse(
      `libstdc++ (GLIBCXX ${facts.glibcxx.join(".")}) is too old, ${GLIBCXX_MIN.join(".")} or newer is needed`,
      DISTRO_HINT,
    );
};

const DISTRO_HINT = "Debian 12, Ubuntu 22.04, Fedora 36 and newer have it";

/** Asks the system's tools; a tool that is missing or silent leaves its fact unknown. */
export const readSystem = async (): Promise<SystemFacts> => {
  const { platform, arch } = process;
  if (platform === "darwin") {
    const macos = parseMacosVersion(await outputOf(["sw_vers", "-productVersion"])) ?? macosOfDarwin(release());
    return { platform, arch, macos, libc: { kind: "unknown" }, glibcxx: null };
  }
  if (platform !== "linux") return { platform, arch, macos: null, libc: { kind: "unknown" }, glibcxx: null };
  const asked = parseLibc(await outputOf(["getconf", "GNU_LIBC_VERSION"]));
  const libc = asked.kind === "unknown" ? parseLibc(await outputOf(["ldd", "--version"])) : asked;
  return { platform, arch, macos: null, libc, glibcxx: await readGlibcxx() };
};

export const readCpuIdentity = async (): Promise<CpuIdentity> =>
  process.platform === "darwin"
    ? parseSysctlCpu(await outputOf(["sysctl", "machdep.cpu.brand_string", "hw.optional"]))
    : parseCpuinfo(await readFile("/proc/cpuinfo", "utf8"));

const LIBSTDCXX_USUAL: readonly string[] = [
  "/usr/lib/x86_64-linux-gnu/libstdc++.so.6",
  "/usr/lib/aarch64-linux-gnu/libstdc++.so.6",
  "/usr/lib64/libstdc++.so.6",
];

const readGlibcxx = async (): Promise<Version | null> => {
  const known = await firstReadable(LIBSTDCXX_USUAL.filter(isForThisArch));
  // ldconfig is not on every user's PATH, and some systems have none.
  const bytes = known ?? (await firstReadable(parseLdconfig(await outputOf(["/sbin/ldconfig", "-p"]))));
  return bytes === null ? null : newestGlibcxx(bytes);
};

const isForThisArch = (path: string): boolean =>
  !path.includes("-linux-gnu/") || path.includes(process.arch === "arm64" ? "aarch64" : "x86_64");

const firstReadable = async (paths: readonly string[]): Promise<Uint8Array | null> => {
  for (const path of paths) {
    const file = Bun.file(path);
    if (await file.exists()) return file.bytes();
  }
  return null;
};

const outputOf = async (command: readonly string[]): Promise<string> => {
  const result = await runCommand(command, { deadlineMs: TOOL_DEADLINE_MS });
  return result.stdout.trim() === "" ? result.stderrTail : result.stdout;
};
