/** What serve-coordinator, keys, join-token and demo share: identity, store, options and the owner's operations. */
import { mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { addressOf } from "../src/coordinator/address.ts";
import { DATABASE_FILE, openAdmin, type Admin } from "../src/coordinator/admin/client.ts";
import { startCoordinator, type Coordinator } from "../src/coordinator/coordinator.ts";
import type { CoordinatorOptions } from "../src/coordinator/options.ts";
import { openStore } from "../src/coordinator/store/open-store.ts";
import type { Config } from "../src/core/config.ts";
import { Fault } from "../src/core/fault.ts";
import type { Log } from "../src/core/log.ts";
import { openSoftwareSigner, type Signer } from "../src/trust/signer.ts";
import type { CommandDeps } from "./_deps.ts";

/** A provider in the same folder has `identity.key`; the two are different parties and sign with different keys. */
const COORDINATOR_KEY_FILE = "coordinator.key";

export const makeDataDir = (dataDir: string): void => {
  try {
    mkdirSync(dataDir, { recursive: true, mode: 0o700 });
  } catch (cause) {
    throw new Fault("io_failed", `cannot create the data folder ${dataDir}`, {
      hint: "choose another with --data-dir, or check its owner and permissions",
      cause,
    });
  }
};

const openIdentity = (dataDir: string): Promise<Signer> => openSoftwareSigner(join(dataDir, COORDINATOR_KEY_FILE));

const readPem = (flag: string, path: string | null): string | null => {
  if (path === null) return null;
  try {
    return readFileSync(path, "utf8");
  } catch (cause) {
    throw new Fault("file_missing", `cannot read ${path}`, { hint: `check ${flag}`, cause });
  }
};

export const toCoordinatorOptions = (config: Pick<Config, "coordinator" | "dataDir">): CoordinatorOptions => ({
  ...config.coordinator,
  dataDir: config.dataDir,
  tlsCert: readPem("--tls-cert", config.coordinator.tlsCert),
  tlsKey: readPem("--tls-key", config.coordinator.tlsKey),
});

export const wireCoordinator = async (
  deps: CommandDeps,
  config: Pick<Config, "coordinator" | "dataDir">,
  log: Log,
): Promise<Coordinator> => {
  makeDataDir(config.dataDir);
  const options = toCoordinatorOptions(config);
  const signer = await openIdentity(config.dataDir);
  const store = openStore(deps, join(config.dataDir, DATABASE_FILE));
  return startCoordinator({ ...deps, log, store, signer }, options);
};

/** The owner's operations on a data folder, whether or not its coordinator runs. */
export const wireAdmin = async (deps: CommandDeps, config: Pick<Config, "coordinator" | "dataDir">): Promise<Admin> => {
  makeDataDir(config.dataDir);
  const { fingerprint } = await openIdentity(config.dataDir);
  const { port, publicUrl } = config.coordinator;
  const { providerUrl } = addressOf(config.coordinator, port);
  const isKnown = port !== 0 || publicUrl !== null;
  return openAdmin(deps, config.dataDir, isKnown ? { url: providerUrl, fingerprint } : { fingerprint });
};
