/** From a file to a running engine: structure check, memory, trial in a throw-away process, load; the only safe order. */
import type { NativeLocation } from "../../ffi/location.ts";
import { tryModelInChild } from "../../ffi/try-model.ts";
import { Fault } from "../core/fault.ts";
import type { SelfCommand } from "../core/spawn-self.ts";
import { formatBytes } from "../core/units.ts";
import { checkGguf } from "../models/gguf-check.ts";
import { describeGguf, type GgufDescription } from "../models/gguf-describe.ts";
import type { Engine } from "./engine.ts";
import { type LlamaEngineOptions, openLlamaEngine } from "./llama-engine.ts";
import { CONTEXT_TOKENS_DEFAULT } from "./worker-protocol.ts";

export interface LoadModelOptions extends LlamaEngineOptions {
  readonly location: NativeLocation;
  /** Memory that may be used; null = unknown, then only the load itself finds out. */
  readonly availableBytes: number | null;
  readonly self: SelfCommand;
  readonly cacheDir: string;
  /** Told what happens next, for a progress line. */
  readonly onStep?: (step: string) => void;
}

/** Caches hold 16-bit numbers. */
const CACHE_VALUE_BYTES = 2;

/** Weights and attention cache; compute buffers, a few percent more, are left to the load itself. */
export const weightsAndCacheBytes = (
  model: GgufDescription,
  sizes: Pick<LlamaEngineOptions, "contextTokens" | "rows">,
): number => {
  const trained = model.contextTokens > 0 ? model.contextTokens : CONTEXT_TOKENS_DEFAULT;
  const cells = (sizes.contextTokens ?? Math.min(trained, CONTEXT_TOKENS_DEFAULT)) * sizes.rows;
  const heads = model.headsKv.reduce((sum, count) => sum + count, 0);
  return model.weightsBytes + cells * heads * (model.keyLength + model.valueLength) * CACHE_VALUE_BYTES;
};

/**
 * Throws `file_missing`, `model_invalid` (damaged, of another kind, or one that crashes the library) and `memory_short`
 * besides what `openLlamaEngine` throws.
 */
export const loadModel = async (options: LoadModelOptions): Promise<Engine> => {
  const { location, modelPath, availableBytes, self, cacheDir, gpuLayers, onStep } = options;
  onStep?.("checking the model file");
  const model = describeGguf(await checkGguf(modelPath));
  const neededBytes = weightsAndCacheBytes(model, options);
  if (availableBytes !== null && neededBytes > availableBytes)
    throw new Fault(
      "memory_short",
      `the model needs ${formatBytes(neededBytes)} of memory, ${formatBytes(availableBytes)} are free`,
      { hint: "use a smaller --ctx or --parallel, a smaller model, or close other programs" },
    );
  await tryModelInChild(location, modelPath, {
    self,
    cacheDir,
    ...(gpuLayers === null ? {} : { gpuLayers }),
    ...(onStep === undefined ? {} : { onProgress: onStep }),
  });
  onStep?.("loading the model");
  return openLlamaEngine(options);
};
