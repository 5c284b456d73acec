/** Platform floors and CPU identity, on what the systems' own tools print (see test/fixtures/system/README.md). */
import { describe, expect, test } from "bun:test";
import { join } from "node:path";
import {
  checkSystem,
  compareVersions,
  macosOfDarwin,
  newestGlibcxx,
  parseCpuinfo,
  parseLdconfig,
  parseLibc,
  parseMacosVersion,
  parseSysctlCpu,
  readCpuIdentity,
  readSystem,
  type SystemFacts,
} from "../../ffi/system.ts";
import { Fault } from "../../src/core/fault.ts";

const fixture = (name: string): Promise<string> => Bun.file(join(import.meta.dir, "../fixtures/system", name)).text();

const DEBIAN_12: SystemFacts = {
  platform: "linux",
  arch: "x64",
  macos: null,
  libc: { kind: "glibc", version: [2, 36] },
  glibcxx: [3, 4, 30],
};
const SONOMA: SystemFacts = {
  platform: "darwin",
  arch: "arm64",
  macos: [14, 5],
  libc: { kind: "unknown" },
  glibcxx: null,
};

const refusalOf = (facts: SystemFacts): string => {
  try {
    checkSystem(facts);
  } catch (thrown) {
    if (thrown instanceof Fault && thrown.code === "system_too_old") return thrown.message;
    throw thrown;
  }
  return "none";
};

describe("libc", () => {
  test("getconf and ldd of Debian 12 both say 2.36", async () => {
    expect(parseLibc(await fixture("getconf-debian12.txt"))).toEqual({ kind: "glibc", version: [2, 36] });
    expect(parseLibc(await fixture("ldd-debian12.txt"))).toEqual({ kind: "glibc", version: [2, 36] });
  });

  test("the plain and the Ubuntu wording of ldd are read too", () => {
    expect(parseLibc("ldd (GNU libc) 2.18\n")).toEqual({ kind: "glibc", version: [2, 18] });
    expect(parseLibc("ldd (Ubuntu GLIBC 2.35-0ubuntu3.8) 2.35\n")).toEqual({ kind: "glibc", version: [2, 35] });
  });

  test("musl is known by its banner and by its complaint", async () => {
    expect(parseLibc(await fixture("sample-ldd-alpine.txt"))).toEqual({ kind: "musl" });
    expect(parseLibc(await fixture("sample-ldd-alpine310.txt"))).toEqual({ kind: "musl" });
  });

  test("anything else stays unknown", () => {
    expect(parseLibc("")).toEqual({ kind: "unknown" });
    expect(parseLibc("getconf: Unrecognized variable `GNU_LIBC_VERSION'")).toEqual({ kind: "unknown" });
  });
});

describe("libstdc++", () => {
  test("the newest symbol version wins, by number and not by text", () => {
    const bytes = new TextEncoder().encode(
      "\0GLIBCXX_3.4\0GLIBCXX_3.4.9\0GLIBCXX_3.4.30\0GLIBCXX_3.4.29\0GLIBCXX_DEBUG_X\0",
    );
    expect(newestGlibcxx(bytes)).toEqual([3, 4, 30]);
    expect(newestGlibcxx(new Uint8Array(8))).toBeNull();
  });

  test("ldconfig names its path; 32-bit ones do not count", async () => {
    expect(parseLdconfig(await fixture("ldconfig-debian12.txt"))).toEqual(["/lib/x86_64-linux-gnu/libstdc++.so.6"]);
    expect(parseLdconfig("\tlibstdc++.so.6 (libc6) => /lib32/libstdc++.so.6\n")).toEqual([]);
    expect(parseLdconfig("\tlibstdc++.so.6 (libc6,AArch64) => /lib/aarch64-linux-gnu/libstdc++.so.6\n")).toHaveLength(
      1,
    );
  });
});

describe("macOS", () => {
  test("sw_vers and the kernel release", () => {
    expect(parseMacosVersion("14.5\n")).toEqual([14, 5]);
    expect(parseMacosVersion("sw_vers: command not found")).toBeNull();
    expect(macosOfDarwin("22.6.0")).toEqual([13]);
    expect(macosOfDarwin("23.5.0")).toEqual([14]);
    expect(macosOfDarwin("25.2.0")).toEqual([26]);
    expect(macosOfDarwin("19.6.0")).toBeNull();
  });
});

describe("floors", () => {
  test("a system at or above every floor passes", () => {
    expect(refusalOf(DEBIAN_12)).toBe("none");
    expect(refusalOf({ ...DEBIAN_12, libc: { kind: "glibc", version: [2, 34] } })).toBe("none");
    expect(refusalOf({ ...SONOMA, macos: [14] })).toBe("none");
    expect(refusalOf({ ...SONOMA, macos: [26, 1] })).toBe("none");
  });

  test("what no tool could tell is left to the loader", () => {
    expect(refusalOf({ ...DEBIAN_12, libc: { kind: "unknown" }, glibcxx: null })).toBe("none");
    expect(refusalOf({ ...SONOMA, macos: null })).toBe("none");
  });

  test("each floor is named with what was found", () => {
    expect(refusalOf({ ...DEBIAN_12, libc: { kind: "glibc", version: [2, 31] } })).toContain("glibc 2.31");
    expect(refusalOf({ ...DEBIAN_12, glibcxx: [3, 4, 29] })).toContain("GLIBCXX 3.4.29");
    expect(refusalOf({ ...DEBIAN_12, libc: { kind: "musl" } })).toContain("musl");
    expect(refusalOf({ ...SONOMA, macos: [13, 6, 1] })).toContain("macOS 13.6.1");
    expect(refusalOf({ ...SONOMA, arch: "x64" })).toContain("darwin-x64");
    expect(refusalOf({ ...DEBIAN_12, platform: "win32" })).toContain("win32-x64");
  });

  test("versions compare part by part", () => {
    expect(compareVersions([2, 4], [2, 34])).toBeLessThan(0);
    expect(compareVersions([2, 34], [2, 34, 0])).toBe(0);
    expect(compareVersions([3], [2, 99])).toBeGreaterThan(0);
  });

  test("this machine is read and passes", async () => {
    const facts = await readSystem();
    expect(facts.platform).toBe(process.platform);
    if (process.platform === "linux") expect(facts.libc.kind).toBe("glibc");
    else expect(facts.macos).not.toBeNull();
    expect(refusalOf(facts)).toBe("none");
  });
});

describe("CPU identity", () => {
  test("an EPYC is named, and a lost flag changes its hash", async () => {
    const text = await fixture("cpuinfo-epyc.txt");
    const identity = parseCpuinfo(text);
    expect(identity.name).toBe("AMD EPYC");
    expect(parseCpuinfo(text.replaceAll(" avx512_bf16", "")).sha256).not.toBe(identity.sha256);
    expect(parseCpuinfo(text.replaceAll(/^model\t.*$/gm, "model\t\t: 18")).sha256).not.toBe(identity.sha256);
  });

  test("clock speed and number of cores do not change it", async () => {
    const text = await fixture("cpuinfo-epyc.txt");
    const oneCore = `${text.split("\n\n")[0]}\n`;
    expect(oneCore.length).toBeLessThan(text.length);
    expect(parseCpuinfo(oneCore)).toEqual(parseCpuinfo(text));
    expect(parseCpuinfo(text.replaceAll(/^cpu MHz.*$/gm, "cpu MHz\t\t: 1.0"))).toEqual(parseCpuinfo(text));
  });

  test("ARM has no model name: its part stands for it, and a second kind of core counts", async () => {
    const text = await fixture("sample-cpuinfo-altra.txt");
    expect(parseCpuinfo(text).name).toBe("ARM part 0xd0c");
    const mixed = text.replace("0xd0c", "0xd0b");
    expect(parseCpuinfo(mixed).sha256).not.toBe(parseCpuinfo(text).sha256);
  });

  test("Apple's sysctl, whatever the order of its lines", async () => {
    const text = await fixture("sample-sysctl-m1.txt");
    expect(parseSysctlCpu(text).name).toBe("Apple M1");
    const turned = `${text.trim().split("\n").toReversed().join("\n")}\n`;
    expect(parseSysctlCpu(turned)).toEqual(parseSysctlCpu(text));
    expect(parseSysctlCpu(text.replace("BF16: 0", "BF16: 1")).sha256).not.toBe(parseSysctlCpu(text).sha256);
  });

  test("this machine has one", async () => {
    const identity = await readCpuIdentity();
    expect(identity.name).not.toBe("");
    expect(identity.sha256).toMatch(/^[0-9a-f]{64}$/);
  });
});
