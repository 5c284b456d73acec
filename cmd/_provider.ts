/** What start, demo, benchmark and doctor share: the model file, the machine, and an engine for it. */
import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { release } from "node:os";
import { basename, join } from "node:path";
import type { NativeLocation } from "../ffi/location.ts";
import type { Clock } from "../src/core/clock.ts";
import type { Config } from "../src/core/config.ts";
import { Fault } from "../src/core/fault.ts";
import type { Hardware } from "../src/core/hardware.ts";
import type { Log } from "../src/core/log.ts";
import { isCompiled, selfCommand } from "../src/core/spawn-self.ts";
import type { Engine } from "../src/engine/engine.ts";
import { loadModel } from "../src/engine/load-model.ts";
import { openHashCache } from "../src/models/hash-cache.ts";
import { manifestSha256, oneFileManifest } from "../src/models/manifest.ts";
import { checkModelId } from "../src/models/model-name.ts";
import { detectHardware, performanceCores, readLiveMetrics } from "../src/provider/hardware/hardware.ts";
import type { LiveMetrics } from "../src/provider/hardware/live-metrics.ts";
import type { HashedModel, ServedModel } from "../src/provider/lifecycle.ts";
import type { SystemFacts } from "../src/provider/link/registration.ts";
import { systemProbe } from "../src/provider/hardware/system-probe.ts";
import { openSoftwareSigner, type Signer } from "../src/trust/signer.ts";
import type { CommandDeps } from "./_deps.ts";
import { loadNativeLocation } from "./_wire.ts";

/** `--id`, else the file name without `.gguf`. */
export const modelIdOf = (modelPath: string, id: string | undefined): string =>
  checkModelId(
    id ??
      basename(modelPath)
        .replace(/\.gguf$/i, "")
        .replaceAll(/[^A-Za-z0-9._-]/g, "-"),
  );

export const openIdentity = (dataDir: string): Promise<Signer> => openSoftwareSigner(join(dataDir, "identity.key"));

export interface Machine {
  readonly hardware: Hardware;
  readMetrics(): Promise<LiveMetrics>;
}

export const wireMachine = async (clock: Clock, log: Log): Promise<Machine> => {
  const probe = systemProbe({ platform: process.platform, clock, log });
  return { hardware: await detectHardware(probe), readMetrics: () => readLiveMetrics(probe) };
};

/**
 * One thread is left to everything that is not the engine. Never more than there are CPUs: the engine's threads wait for each
 * other by spinning, and 64 of them on 2 CPUs did not get through one token in 40 s.
 */
export const engineThreads = (config: Pick<Config, "provider">, hardware: Pick<Hardware, "cpu_cores">): number =>
  Math.min(
    config.provider.threads ?? Math.max(1, performanceCores(hardware) - 1),
    Math.max(1, hardware.cpu_cores.total),
  );

export interface EngineWiring {
  readonly deps: CommandDeps;
  readonly config: Config;
  readonly log: Log;
  readonly machine: Machine;
  readonly modelPath: string;
  readonly id: string;
  /** Steps of preparing the library and loading, for a progress line. */
  readonly onProgress?: (step: string) => void;
  /** Told which libraries were loaded. */
  readonly onNative?: (location: NativeLocation) => void;
}

/** The path from a GGUF file to a running engine: library, checks, trial, load. */
export const wireEngine = async (wiring: EngineWiring): Promise<Engine> => {
  const { deps, config, log, machine, modelPath, id, onProgress } = wiring;
  const progress = onProgress === undefined ? {} : { onProgress };
  const location = await loadNativeLocation(deps, { config, log, ...progress });
  wiring.onNative?.(location);
  const { memoryAvailableBytes } = await machine.readMetrics();
  return loadModel({
    location,
    modelPath,
    id,
    contextTokens: config.provider.contextTokens,
    rows: config.provider.rows,
    threads: engineThreads(config, machine.hardware),
    gpuLayers: config.provider.gpuLayers,
    availableBytes: memoryAvailableBytes,
    self: selfCommand(),
    cacheDir: config.cacheDir,
    clock: deps.clock,
    log,
    onStep: (step) => onProgress?.(step),
    onProgress: (fraction) => onProgress?.(`loading ${Math.floor(fraction * 100)} %`),
  });
};

const hashModel = async (wiring: EngineWiring): Promise<HashedModel> => {
  const { config, log, modelPath, id, onProgress } = wiring;
  const cache = await openHashCache({ folder: config.dataDir, log, processId: process.pid });
  const manifest = await oneFileManifest(modelPath, id, {
    hash: (path, onBytes) => cache.hash(path, onBytes),
    onProgress: (doneBytes, totalBytes) =>
      onProgress?.(`hashing ${Math.floor((doneBytes / Math.max(1, totalBytes)) * 100)} %`),
  });
  return { manifestSha256: manifestSha256(manifest) };
};

export const toServedModel = (wiring: EngineWiring): ServedModel => ({
  id: wiring.id,
  hash: () => hashModel(wiring),
  open: () => wireEngine(wiring),
});

const sha256OfFile = async (path: string): Promise<string> => {
  const hash = createHash("sha256");
  for await (const bytes of createReadStream(path)) hash.update(bytes as Uint8Array);
  return hash.digest("hex");
};

/**
 * What a statement says of this system. Posture values exist on a Mac only; there they stay unknown until they are read from the
 * system, and unknown is said as null, never as true.
 */
export const systemFacts = async (): Promise<(native: NativeLocation | null) => SystemFacts> => {
  const buildSha256 = isCompiled() ? await sha256OfFile(process.execPath) : null;
  return (native) => ({
    os: {
      platform: process.platform === "darwin" || process.platform === "linux" ? process.platform : "other",
      version: release(),
      arch: process.arch,
    },
    posture: {
      sip_enabled: null,
      secure_boot_enabled: null,
      authenticated_root_enabled: null,
      core_dumps_disabled: null,
    },
    build_sha256: buildSha256,
    native_sha256: native?.sha256 ?? null,
  });
};

/** `--model`, else the configured one. */
export const requireModelPath = (config: Pick<Config, "provider">): string => {
  if (config.provider.model !== null) return config.provider.model;
  throw new Fault("usage", "no model is named", { hint: "add --model <file.gguf>" });
};
