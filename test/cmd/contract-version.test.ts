/** `darkbloom --version` is instant: it loads no subcommand, no ink and nothing native; `--json` or not, it does nothing else. */
import { describe, expect, test } from "bun:test";
import { join, relative } from "node:path";
import { runDarkbloom } from "../support/darkbloom-process.ts";
import { tempDir } from "../support/temp-dir.ts";

const ROOT = join(import.meta.dir, "../..");
const RUNS = 9;
/** What `--version` may cost on top of an empty Bun program on the same machine at the same time. */
const OWN_COST_MS = 100;

/** Runs the program's main in a fresh process and lists every module that was loaded for it, relative to the root. */
const modulesLoadedFor = async (args: readonly string[]): Promise<readonly string[]> => {
  const script = `
    const { main } = await import(${JSON.stringify(join(ROOT, "cmd/index.ts"))});
    const { realDeps } = await import(${JSON.stringify(join(ROOT, "cmd/_world.ts"))});
    const deps = { ...realDeps(), stdout: () => undefined, stderr: () => undefined };
    await main(deps, ${JSON.stringify(args)});
    process.stdout.write(JSON.stringify(Object.keys(require.cache)));
    process.exit(0);`;
  await using dir = await tempDir();
  const path = join(dir.path, "list-modules.ts");
  await Bun.write(path, script);
  const child = Bun.spawn([process.execPath, path], { stdout: "pipe", stderr: "inherit" });
  const loaded = JSON.parse(await new Response(child.stdout).text()) as string[];
  return loaded.filter((path) => path.startsWith(ROOT)).map((path) => relative(ROOT, path));
};

const medianMs = async (run: () => Promise<unknown>): Promise<number> => {
  const tookMs: number[] = [];
  for (let i = 0; i < RUNS; i += 1) {
    const startedMs = performance.now();
    await run();
    tookMs.push(performance.now() - startedMs);
  }
  return tookMs.toSorted((a, b) => a - b)[Math.floor(RUNS / 2)] ?? Number.NaN;
};

describe("--version", () => {
  test("loads the program's frame and the core, nothing else", async () => {
    const loaded = await modulesLoadedFor(["--version"]);
    expect(loaded).toContain("cmd/index.ts");
    const own = /^(bin\/darkbloom\.ts|cmd\/(index|_world|_deps)\.ts|src\/core\/[^/]+\.ts|package\.json)$/;
    expect(loaded.filter((path) => !own.test(path))).toEqual([]);
  }, 30_000);

  test("the list would show a subcommand, a package and the native layer", async () => {
    const loaded = await modulesLoadedFor(["start", "--help"]);
    expect(loaded).toContain("cmd/start.ts");
    expect(loaded.some((path) => path.startsWith("ffi/"))).toBe(true);
    expect(loaded.some((path) => path.startsWith("node_modules/commander/"))).toBe(true);
  }, 30_000);

  test("costs little more than an empty program", async () => {
    const emptyMs = await medianMs(() => Bun.spawn([process.execPath, "-e", "0"]).exited);
    const versionMs = await medianMs(() => runDarkbloom(["--version"]));
    process.stdout.write(`--version: median ${versionMs.toFixed(1)} ms, an empty program ${emptyMs.toFixed(1)} ms\n`);
    expect(versionMs - emptyMs).toBeLessThan(OWN_COST_MS);
  }, 60_000);
});
