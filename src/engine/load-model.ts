/** From a file to a running engine: structure check, memory, trial in a throw-away process, load; the only safe order. */
import type { NativeLocation } from "../../ffi/location.ts";
import { tryModelInChild } from "../../ffi/try-model.ts";
import { Fault } from "../core/fault.ts";
import type { SelfCommand } from "../core/spawn-self.ts";
import { formatBytes } from "../core/units.ts";
import { checkGguf } from "../models/gguf-check.ts";
import { describeGguf } from "../models/gguf-describe.ts";
import { memoryFit } from "../models/memory.ts";
import type { Engine } from "./engine.ts";
import { type LlamaEngineOptions, openLlamaEngine } from "./llama-engine.ts";
import { defaultContextTokens } from "./worker-protocol.ts";

export interface LoadModelOptions extends LlamaEngineOptions {
  readonly location: NativeLocation;
  /** Memory that may be used; null = unknown, then only the load itself finds out. */
  readonly availableBytes: number | null;
  readonly self: SelfCommand;
  readonly cacheDir: string;
  /** Told what happens next, for a progress line. */
  readonly onStep?: (step: string) => void;
}

/**
 * Throws `file_missing`, `model_invalid` (damaged, of another kind, or one that crashes the library) and `memory_short`
 * besides what `openLlamaEngine` throws.
 */
export const loadModel = async (options: LoadModelOptions): Promise<Engine> => {
  const { location, modelPath, availableBytes, self, cacheDir, gpuLayers, onStep } = options;
  onStep?.("checking the model file");
  const header = await checkGguf(modelPath);
  const contextTokens = options.contextTokens ?? defaultContextTokens(describeGguf(header).contextTokens);
  const fit = availableBytes === null ? null : memoryFit({ header, contextTokens, rows: options.rows, availableBytes });
  if (fit !== null && !fit.fits)
    throw new Fault(
      "memory_short",
      `the model needs ${formatBytes(fit.totalBytes)} of memory, ${formatBytes(fit.availableBytes)} are free`,
      {
        hint:
          fit.contextTokensMax > 0
            ? `add --ctx ${fit.contextTokensMax}, or use a smaller --parallel, or close other programs`
            : "use a smaller model or quantization, or close other programs",
      },
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
