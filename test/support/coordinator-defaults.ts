/** A coordinator's options as they are when nothing is set, without a data folder. */
import type { CoordinatorOptions } from "../../src/coordinator/options.ts";
import { loadConfig } from "../../src/core/config.ts";

/** A home that does not exist: no configuration file of the machine reaches a test. */
const { coordinator } = loadConfig({ environment: { HOME: "/nonexistent" } });

export const COORDINATOR_DEFAULTS: CoordinatorOptions = { ...coordinator, dataDir: null };
