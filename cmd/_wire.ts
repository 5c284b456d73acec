/** Builds the real dependencies of the subcommands from configuration: log, native libraries, demo model. */
import { randomUUID } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdir, rename, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { EMBEDDED } from "../ffi/embedded.ts";
import { prepareNative } from "../ffi/library.ts";
import type { NativeLocation } from "../ffi/location.ts";
import { loadConfig, type Config } from "../src/core/config.ts";
import { createLog, type Log } from "../src/core/log.ts";
import { selfCommand } from "../src/core/spawn-self.ts";
import type { CommandDeps } from "./_deps.ts";

/** Logs go to stderr; with `--json` they are JSON lines too. */
export const wireLog = (deps: CommandDeps, config: Pick<Config, "common">, json = false): Log =>
  createLog({
    clock: deps.clock,
    level: config.common.logLevel,
    format: json ? "json" : config.common.logFormat,
    write: deps.stderr,
  });

interface NativeWiring {
  readonly config?: Config;
  readonly log?: Log;
  readonly onProgress?: (step: string) => void;
}

/** The native libraries of this machine, ready to open; the first call on a machine may take a minute. */
export const loadNativeLocation = (deps: CommandDeps, wiring: NativeWiring = {}): Promise<NativeLocation> => {
  const config = wiring.config ?? loadConfig({ environment: deps.environment });
  return prepareNative({
    nativeDir: config.common.nativeDir,
    cacheDir: config.cacheDir,
    self: selfCommand(),
    log: wiring.log ?? wireLog(deps, config),
    ...(wiring.onProgress === undefined ? {} : { onProgress: wiring.onProgress }),
  });
};

/** Id under which the demo model is served. */
export const DEMO_MODEL_ID = "darkbloom-demo";
const DEMO_MODEL_FILE = "darkbloom-demo-q8_0.gguf";

/** Path of the demo model as a real file: llama.cpp cannot map one inside the executable, so that one is unpacked once. */
export const demoModelPath = async (config: Pick<Config, "cacheDir">): Promise<string> => {
  const embedded = EMBEDDED?.demoModel;
  if (embedded === undefined) return join(import.meta.dir, "../assets/demo-model", DEMO_MODEL_FILE);
  const dir = join(config.cacheDir, "demo-model", EMBEDDED?.key ?? "");
  const path = join(dir, DEMO_MODEL_FILE);
  const { size } = Bun.file(embedded);
  if (existsSync(path) && (await stat(path)).size === size) return path;
  await mkdir(dir, { recursive: true, mode: 0o700 });
  // A name of its own each time: two checks of one process may unpack side by side.
  const temporary = `${path}.${randomUUID()}.tmp`;
  try {
    // Not copyFile: the system knows no files inside the executable.
    await Bun.write(temporary, await Bun.file(embedded).bytes());
    await rename(temporary, path);
  } finally {
    if (existsSync(temporary)) await rm(temporary, { force: true });
  }
  return path;
};
