/** `hash` and `publish hash` as a user or a script sees them: output, order of checks, exit codes. */
import { describe, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { CommandDeps } from "../../cmd/_deps.ts";
import { hashProgress } from "../../cmd/_hash-progress.ts";
import { main } from "../../cmd/index.ts";
import { createIds, type Random } from "../../src/core/ids.ts";
import { createFakeClock } from "../support/fake-clock.ts";
import { tempDir } from "../support/temp-dir.ts";

const DEMO = join(import.meta.dir, "../../assets/demo-model/darkbloom-demo-q8_0.gguf");
const DEMO_SHA256 = "57f26f7b4c50d507589fba88e0b878ccd154eff747009ee77342bb24d5e29783";
const AGGREGATE = "90a5f9c17d6898d8689f21ef315aab6ea491d97ff4e08c4b0b81abe5536f824d";
const random: Random = { bytes: (length) => new Uint8Array(length), fraction: () => 0 };

const run = async (...argv: string[]) => {
  const out = { stdout: "", stderr: "" };
  const deps: CommandDeps = {
    stdout: (text) => void (out.stdout += text),
    stderr: (text) => void (out.stderr += text),
    clock: createFakeClock(Date.UTC(2026, 5, 1)),
    random,
    ids: createIds(random),
    isTty: false,
    environment: {},
    version: "0.0.0",
    signals: {
      stopping: new AbortController().signal,
      untilStop: () => Promise.withResolvers<"SIGINT">().promise,
      takeOver: () => undefined,
    },
  };
  return { exit: await main(deps, argv), ...out };
};

const vector = async (dir: string): Promise<void> => {
  await writeFile(join(dir, "config.json"), "hello");
  await writeFile(join(dir, "model.safetensors"), "");
  await writeFile(join(dir, "tokenizer.json"), "{}");
};

describe("hash", () => {
  test("a folder: one JSON object, or lines for people", async () => {
    await using dir = await tempDir();
    await vector(dir.path);
    const json = await run("hash", dir.path, "--json");
    expect(json).toMatchObject({ exit: 0, stderr: "" });
    const result = JSON.parse(json.stdout) as { aggregate_sha256: string; files: { path: string }[] };
    expect(Object.keys(result)).toEqual(["aggregate_sha256", "files"]);
    expect(result.aggregate_sha256).toBe(AGGREGATE);
    const text = await run("hash", dir.path);
    expect(text.stdout.split("\n")).toHaveLength(5);
    expect(text.stdout).toEndWith(`${AGGREGATE}  aggregate\n`);
  });

  test("a file: its hash, and the aggregate over one", async () => {
    const { stdout } = await run("hash", DEMO, "--json");
    expect(JSON.parse(stdout)).toEqual({
      aggregate_sha256: createHash("sha256").update(Buffer.from(DEMO_SHA256, "hex")).digest("hex"),
      files: [
        {
          path: "darkbloom-demo-q8_0.gguf",
          size_bytes: 3_662_304,
          sha256: DEMO_SHA256,
          role: "weight",
          gguf_header_sha256: "45db6e38c812fd19e30cdecca493afa9d4944a80d9fcc648a94883648b690e16",
          template_sha256: "4996eb3ce2c89afbacfeddcb465f4ea0b18176b9c9e2e7052104b1cf5308b136",
        },
      ],
    });
  });

  test("a damaged model is hashed all the same, with a warning", async () => {
    await using dir = await tempDir();
    const path = join(dir.path, "m.gguf");
    await writeFile(path, "damaged");
    const { exit, stdout, stderr } = await run("hash", path);
    expect(exit).toBe(0);
    expect(stdout).toContain(createHash("sha256").update("damaged").digest("hex"));
    expect(stderr).toStartWith("warning: ");
  });

  test("nothing there: exit 1 and what to do; no argument: exit 64", async () => {
    const missing = await run("hash", "/nonexistent/model.gguf");
    expect(missing).toMatchObject({ exit: 1, stdout: "" });
    expect(missing.stderr).toContain("/nonexistent/model.gguf does not exist");
    const json = await run("hash", "/nonexistent/model.gguf", "--json");
    expect(JSON.parse(json.stdout)).toMatchObject({ event: "error", code: "file_missing" });
    expect((await run("hash")).exit).toBe(64);
  });
});

describe("publish hash", () => {
  test("unsafe ids and versions end with 64 before the folder is even looked at", async () => {
    for (const [id, version] of [
      ["/abs", "v1"],
      ["a/../b", "v1"],
      ["a b", "v1"],
      ["", "v1"],
      ["ok", "a/b"],
      ["ok", ".."],
      ["ok", ""],
    ] as const) {
      const result = await run("publish", "hash", "/nonexistent", "--id", id, "--version", version);
      expect(result.exit).toBe(64);
      expect(result.stderr).toContain("is no safe");
    }
    expect((await run("publish", "hash", "/nonexistent", "--id", "ok", "--version", "v1")).exit).toBe(1);
    expect((await run("publish", "hash", "/nonexistent", "--id", "ok")).exit).toBe(64);
    expect((await run("publish")).exit).toBe(64);
  });

  test("the manifest goes to stdout, the same every time", async () => {
    await using dir = await tempDir();
    await vector(dir.path);
    const arguments_ = ["publish", "hash", dir.path, "--id", "org/m", "--version", "2026-06-01-r1"];
    const first = await run(...arguments_);
    expect(first).toMatchObject({ exit: 0, stderr: "" });
    expect(JSON.parse(first.stdout)).toMatchObject({
      aggregate_sha256: AGGREGATE,
      created_at: "2026-06-01T00:00:00Z",
      file_count: 3,
    });
    expect((await run(...arguments_)).stdout).toBe(first.stdout);
    const oneLine = await run(...arguments_, "--json");
    expect(oneLine.stdout.trimEnd().split("\n")).toHaveLength(1);
    expect(JSON.parse(oneLine.stdout)).toEqual(JSON.parse(first.stdout));
  });

  test("with -o it goes to the file, whole, and one summary line to stderr", async () => {
    await using dir = await tempDir();
    await vector(dir.path);
    const output = join(dir.path, "manifest.json");
    const result = await run("publish", "hash", dir.path, "--id", "m", "--version", "v1", "-o", output);
    expect(result).toEqual({ exit: 0, stdout: "", stderr: `3 files, aggregate ${AGGREGATE.slice(0, 12)}\n` });
    expect(JSON.parse(await readFile(output, "utf8"))).toMatchObject({ model_id: "m" });
    expect(await readdir(dir.path)).toEqual(expect.not.arrayContaining(["manifest.json.part"]));
    const json = await run("publish", "hash", dir.path, "--id", "m", "--version", "v1", "-o", output, "--json");
    expect(JSON.parse(json.stdout)).toMatchObject({
      output,
      aggregate_sha256: AGGREGATE,
      manifest_sha256: expect.stringMatching(/^[0-9a-f]{64}$/),
    });
  });

  test("no model files, a broken model, a place that cannot be written: exit 1 with the next step", async () => {
    await using dir = await tempDir();
    const hash = (...more: string[]) => run("publish", "hash", dir.path, "--id", "m", "--version", "v1", ...more);
    const empty = await hash();
    expect(empty.exit).toBe(1);
    expect(empty.stderr).toContain("has no model files");
    expect(empty.stderr).toContain("→");
    await writeFile(join(dir.path, "model.gguf"), "broken");
    expect((await hash()).stderr).toContain("not a usable GGUF model");
    await writeFile(join(dir.path, "model.gguf"), await readFile(DEMO));
    const nowhere = await hash("-o", join(dir.path, "no/such/folder/manifest.json"));
    expect(nowhere.exit).toBe(1);
    expect(nowhere.stderr).toContain("could not be written to");
  });
});

test("progress is drawn on a terminal only, for long work only, at most four times a second", async () => {
  const clock = createFakeClock();
  const draw = (isTty: boolean) => {
    const drawn: string[] = [];
    return { drawn, progress: hashProgress({ stderr: (text) => void drawn.push(text), clock, isTty }) };
  };
  const terminal = draw(true);
  for (let step = 1; step <= 10; step += 1) {
    terminal.progress.onProgress(step * 100e6, 1e9);
    await clock.advance(100);
  }
  terminal.progress.clear();
  expect(terminal.drawn).toHaveLength(5);
  expect(terminal.drawn[0]).toContain("hashing 10 % of 1.00 GB");
  expect(terminal.drawn.at(-1)).toBe("\r\u001B[K");
  const pipe = draw(false);
  pipe.progress.onProgress(1, 1e9);
  const short = draw(true);
  short.progress.onProgress(1, 1000);
  expect([pipe.drawn, short.drawn]).toEqual([[], []]);
});
