/** The real engine on the demo model, as tests and benches open it. */
import { join } from "node:path";
import { prepareNative } from "../../ffi/library.ts";
import type { NativeLocation } from "../../ffi/location.ts";
import { systemClock } from "../../src/core/clock.ts";
import { loadConfig } from "../../src/core/config.ts";
import { createLog } from "../../src/core/log.ts";
import { selfCommand } from "../../src/core/spawn-self.ts";
import type { Engine } from "../../src/engine/engine.ts";
import { type LlamaEngineOptions, openLlamaEngine } from "../../src/engine/llama-engine.ts";

export const DEMO_MODEL_FILE = join(import.meta.dir, "../../assets/demo-model/darkbloom-demo-q8_0.gguf");

/** Warnings and errors go to stderr, so that a failing test shows them. */
const log = createLog({
  clock: systemClock(),
  level: "warn",
  format: "text",
  write: (line) => void process.stderr.write(line),
});

let location: Promise<NativeLocation> | null = null;

/** Prepared once per process, in the machine's cache: it holds nothing but what can be made again. */
export const engineNative = (): Promise<NativeLocation> => {
  const { cacheDir, common } = loadConfig({ environment: process.env });
  location ??= prepareNative({
    nativeDir: common.nativeDir,
    cacheDir,
    self: selfCommand(join(import.meta.dir, "probe-entry.ts")),
    log,
  });
  return location;
};

export const openDemoEngine = async (options: Partial<LlamaEngineOptions> = {}): Promise<Engine> =>
  openLlamaEngine({
    location: await engineNative(),
    modelPath: DEMO_MODEL_FILE,
    id: "darkbloom-demo",
    contextTokens: null,
    rows: 4,
    threads: 1, // llama.cpp's threads wait for each other by spinning: on a busy machine two are slower than one
    gpuLayers: 0,
    clock: systemClock(),
    log,
    ...options,
  });
