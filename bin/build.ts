/** Compiles the one executable: program, worker, native libraries, shim and demo model; for another system, the program alone. */
import { createHash } from "node:crypto";
import { copyFile, mkdir, mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import type { BunPlugin } from "bun";
import { realDeps } from "../cmd/_world.ts";
import { loadNativeLocation } from "../cmd/_wire.ts";
import { isLibraryFile } from "../ffi/location.ts";
import { platformKey } from "../ffi/pin.ts";

const ROOT = join(import.meta.dir, "..");
const DEMO_MODEL = join(ROOT, "assets/demo-model/darkbloom-demo-q8_0.gguf");
/** The first is the program; a Worker file must be an entry of its own to be found inside the executable. */
const ENTRIES = [join(ROOT, "bin/darkbloom.ts"), join(ROOT, "src/engine/engine-worker.ts")];
const TARGETS = ["linux-x64", "linux-arm64", "darwin-arm64"] as const;

interface BuildArguments {
  readonly target: string;
  readonly outfile: string;
  /** macOS signing identity for the embedded libraries and the executable; null = as they are. */
  readonly sign: string | null;
}

const readArguments = (argv: readonly string[]): BuildArguments => {
  const value = (flag: string): string | undefined => {
    const at = argv.indexOf(flag);
    return at === -1 ? undefined : argv[at + 1];
  };
  const host = platformKey(process.platform, process.arch);
  const target = value("--target") ?? host;
  if (!(TARGETS as readonly string[]).includes(target))
    throw new Error(`--target must be one of ${TARGETS.join(", ")}, not ${target}`);
  const name = target === host ? "darkbloom" : `darkbloom-${target}`;
  return { target, outfile: value("--outfile") ?? join(ROOT, "dist", name), sign: value("--sign") ?? null };
};

const must = async (command: readonly string[]): Promise<void> => {
  const child = Bun.spawn([...command], { stdout: "inherit", stderr: "inherit" });
  if ((await child.exited) !== 0) throw new Error(`${command[0]} failed`);
};

/** Copies of the libraries and the shim, since signing changes them. A hardened macOS process loads only its own team's. */
const stageNative = async (stageDir: string, sign: string | null): Promise<string[]> => {
  const location = await loadNativeLocation(realDeps());
  const shimName = basename(location.shimPath);
  const names = (await readdir(location.dir)).filter((name) => isLibraryFile(name) || name === shimName);
  await mkdir(stageDir, { recursive: true });
  for (const name of names) {
    await copyFile(join(location.dir, name), join(stageDir, name));
    if (sign !== null) await must(["codesign", "--force", "--timestamp", "--sign", sign, join(stageDir, name)]);
  }
  return names.toSorted();
};

const toModule = async (stageDir: string, names: readonly string[]): Promise<string> => {
  const hash = createHash("sha256");
  for (const name of names) hash.update(name).update(await readFile(join(stageDir, name)));
  const imports = names.map(
    (name, i) => `import f${i} from ${JSON.stringify(join(stageDir, name))} with { type: "file" };`,
  );
  const entries = names.map((name, i) => `${JSON.stringify(name)}: f${i}`);
  return [
    ...imports,
    `import demoModel from ${JSON.stringify(DEMO_MODEL)} with { type: "file" };`,
    `export const EMBEDDED = { key: "${hash.digest("hex").slice(0, 32)}", files: { ${entries.join(", ")} }, demoModel };`,
  ].join("\n");
};

/** Replaces ffi/embedded.ts, which says "nothing embedded", by a module that imports every staged file. */
const embedPlugin = (contents: string): BunPlugin => ({
  name: "embed-native",
  setup(build) {
    build.onLoad({ filter: /[/\\]ffi[/\\]embedded\.ts$/ }, () => ({ contents, loader: "ts" }));
  },
});

const build = async ({ target, outfile, sign }: BuildArguments): Promise<void> => {
  const isHost = target === platformKey(process.platform, process.arch);
  const stageDir = await mkdtemp(join(tmpdir(), "darkbloom-build-"));
  try {
    const plugins = isHost ? [embedPlugin(await toModule(stageDir, await stageNative(stageDir, sign)))] : [];
    const result = await Bun.build({
      entrypoints: ENTRIES,
      plugins,
      // One chunk per subcommand: a start that loads them all takes 80 ms instead of 10.
      splitting: true,
      minify: { whitespace: true, syntax: true },
      compile: {
        target: `bun-${target}` as Bun.Build.CompileTarget,
        outfile,
        // A `.env` or bunfig.toml in whatever folder the user stands in must not configure a program that holds keys.
        autoloadDotenv: false,
        autoloadBunfig: false,
      },
    });
    if (!result.success) throw new AggregateError(result.logs, "the bundler failed");
    if (sign !== null && isHost) await must(["codesign", "--force", "--timestamp", "--sign", sign, outfile]);
  } finally {
    await rm(stageDir, { recursive: true, force: true });
  }
  process.stdout.write(`${outfile}\n`);
};

await build(readArguments(process.argv.slice(2)));
