/** A provider without a coordinator: one model behind the local OpenAI endpoint. */
import type { Ids } from "../../core/ids.ts";
import {
  Lifecycle,
  type LifecycleDeps,
  type ProviderEnd,
  type ProviderEvents,
  type ServedModel,
} from "../lifecycle.ts";
import { startLocalEndpoint, type LocalEndpoint } from "./local-endpoint.ts";
import { openLocalKey, removeLocalRecord, writeLocalRecord } from "./local-record.ts";

export interface LocalProviderDeps extends LifecycleDeps {
  readonly ids: Ids;
}

export interface LocalListening {
  readonly url: string;
  readonly api_key: string;
}

export interface LocalProviderOptions {
  readonly dataDir: string;
  readonly version: string;
  readonly host: string;
  readonly port: number;
  /** `prov_…` of this folder's identity; for the serving event. */
  readonly providerId: string;
  readonly model: ServedModel;
  readonly events: ProviderEvents;
  /** Right before the serving event: whoever reads the address may use it at once. */
  readonly onListening: (listening: LocalListening) => void;
}

export interface LocalProvider {
  readonly url: string;
  readonly apiKey: string;
  readonly ended: Promise<ProviderEnd>;
  stop(options: { readonly graceMs: number }): Promise<void>;
}

/** No one judges a machine that serves only itself. */
const LOCAL_TRUST = "none";

/**
 * Resolves once the next request will be answered. The port is bound before the model is loaded, so that a port in use
 * is known at once; until then the model answers 503. Faults: `already_running`, `address_in_use`, `io_failed`, and whatever hashing and loading throw.
 */
export const startLocalProvider = async (
  deps: LocalProviderDeps,
  options: LocalProviderOptions,
): Promise<LocalProvider> => {
  const { dataDir, version, model, events } = options;
  const life = new Lifecycle(deps, {
    dataDir,
    start: { mode: "local", program_version: version, provider_id: options.providerId, coordinator_url: null },
    events,
    onChange: () => undefined,
  });
  let endpoint: LocalEndpoint | null = null;
  try {
    const apiKey = openLocalKey(deps.random, dataDir);
    const { host, port } = options;
    endpoint = startLocalEndpoint({ ...deps, slots: life.slots }, { host, port, apiKey, version });
    life.state.update({ local_url: endpoint.url });
    await life.load(model);
    writeRecord(deps, options, endpoint, apiKey);
    options.onListening({ url: endpoint.url, api_key: apiKey });
    life.enter("serving", { models: [model.id] });
    events.onServing({ models: [model.id], provider_id: options.providerId, trust_level: LOCAL_TRUST });
    return running(life, endpoint, { apiKey, dataDir });
  } catch (error) {
    await endpoint?.stop({ graceMs: 0 });
    removeLocalRecord(dataDir, process.pid);
    return life.abandon(error);
  }
};

const writeRecord = (
  deps: LocalProviderDeps,
  options: LocalProviderOptions,
  endpoint: LocalEndpoint,
  apiKey: string,
): void =>
  writeLocalRecord(options.dataDir, {
    base_url: `${endpoint.url}/v1`,
    api_key: apiKey,
    host: endpoint.host,
    port: endpoint.port,
    pid: process.pid,
    version: options.version,
    updated_at: new Date(deps.clock.nowMs()).toISOString(),
  });

const running = (
  life: Lifecycle,
  endpoint: LocalEndpoint,
  known: { readonly apiKey: string; readonly dataDir: string },
): LocalProvider => {
  let stopped: Promise<void> | null = null;
  const stop = async (graceMs: number): Promise<void> => {
    life.enter("draining");
    await endpoint.stop({ graceMs });
    removeLocalRecord(known.dataDir, process.pid);
    await life[Symbol.asyncDispose]();
  };
  return {
    url: endpoint.url,
    apiKey: known.apiKey,
    ended: life.ended,
    stop({ graceMs }) {
      stopped ??= stop(graceMs);
      return stopped;
    },
  };
};
