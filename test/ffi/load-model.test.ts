/** A model file is checked, measured and tried before it is loaded; each way to fail has its own fault. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { join } from "node:path";
import { systemClock } from "../../src/core/clock.ts";
import { Fault } from "../../src/core/fault.ts";
import { selfCommand } from "../../src/core/spawn-self.ts";
import { loadModel, type LoadModelOptions } from "../../src/engine/load-model.ts";
import { chat, run } from "../support/collect.ts";
import { DEMO_MODEL_FILE, engineNative } from "../support/demo-engine.ts";
import { SILENT } from "../support/native.ts";
import { tempDir } from "../support/temp-dir.ts";

setDefaultTimeout(120_000);

const optionsFor = async (cacheDir: string, overrides: Partial<LoadModelOptions> = {}): Promise<LoadModelOptions> => ({
  location: await engineNative(),
  modelPath: DEMO_MODEL_FILE,
  id: "demo",
  contextTokens: 512,
  rows: 2,
  threads: 1,
  gpuLayers: 0,
  availableBytes: 1_000_000_000,
  self: selfCommand(join(import.meta.dir, "../support/probe-entry.ts")),
  cacheDir,
  clock: systemClock(),
  log: SILENT,
  ...overrides,
});

test("a good file is checked, tried once, and answers", async () => {
  await using dir = await tempDir();
  const stepsOf = async (): Promise<string[]> => {
    const steps: string[] = [];
    await using engine = await loadModel(await optionsFor(dir.path, { onStep: (step) => steps.push(step) }));
    expect((await run(engine, chat("What is the capital of France?"))).text).toBe("The capital of France is Paris.");
    return steps;
  };
  expect((await stepsOf()).length).toBe(3);
  expect((await stepsOf()).length).toBe(2); // known good now
});

test("a missing file, a damaged file and too little memory are told apart, before native code sees the file", async () => {
  await using dir = await tempDir();
  const cut = join(dir.path, "cut.gguf");
  await Bun.write(cut, await Bun.file(DEMO_MODEL_FILE).slice(0, 2_000_000).bytes());
  const codeFor = async (overrides: Partial<LoadModelOptions>): Promise<unknown> =>
    loadModel(await optionsFor(dir.path, overrides)).then(
      () => "loaded",
      (error: unknown) => (error instanceof Fault ? error.code : error),
    );
  expect(await codeFor({ modelPath: join(dir.path, "none.gguf") })).toBe("file_missing");
  expect(await codeFor({ modelPath: cut })).toBe("model_invalid");
  expect(await codeFor({ availableBytes: 4_000_000 })).toBe("memory_short");
});
