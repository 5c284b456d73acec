/** A whole network in this process over real sockets: a coordinator with its own store, providers with their own folders, a local endpoint. */
import { join } from "node:path";
import { createAdminOperations, type AdminOperations } from "../../src/coordinator/admin/operations.ts";
import { startCoordinator, type Coordinator } from "../../src/coordinator/coordinator.ts";
import type { CoordinatorOptions } from "../../src/coordinator/options.ts";
import { COORDINATOR_DEFAULTS } from "./coordinator-defaults.ts";
import { openStore } from "../../src/coordinator/store/open-store.ts";
import { systemClock } from "../../src/core/clock.ts";
import type { Hardware } from "../../src/core/hardware.ts";
import { createIds, systemRandom } from "../../src/core/ids.ts";
import type { Engine } from "../../src/engine/engine.ts";
import { startLocalProvider, type LocalProvider } from "../../src/provider/local/local-provider.ts";
import { startProvider, type Provider } from "../../src/provider/provider.ts";
import type { LiveMetrics } from "../../src/provider/hardware/live-metrics.ts";
import type { ProviderServing, ServedModel } from "../../src/provider/lifecycle.ts";
import { openSoftwareSigner } from "../../src/trust/signer.ts";
import { memoryLog, type MemoryLog } from "./memory-log.ts";
import { tempDir } from "./temp-dir.ts";
import { waitFor } from "./wait.ts";

/** What a consumer needs, whichever kind of server answers. */
export interface Endpoint {
  /** Without `/v1`. */
  readonly url: string;
  readonly key: string;
  readonly model: string;
}

export interface JoinedProvider<E extends Engine = Engine> extends AsyncDisposable {
  readonly provider: Provider;
  readonly engine: E;
  readonly tokenId: string;
  /** One entry per time it reached the phase serving. */
  readonly servings: readonly ProviderServing[];
  readonly dataDir: string;
}

export interface Network<E extends Engine = Engine> extends Endpoint, AsyncDisposable {
  readonly coordinator: Coordinator;
  readonly admin: AdminOperations;
  readonly keyId: string;
  readonly log: MemoryLog;
  readonly providers: readonly JoinedProvider<E>[];
  /** Connects one more provider; resolves when it serves. */
  join(engine: E): Promise<JoinedProvider<E>>;
}

export interface LocalNetwork<E extends Engine = Engine> extends Endpoint, AsyncDisposable {
  readonly provider: LocalProvider;
  readonly engine: E;
  readonly log: MemoryLog;
  readonly dataDir: string;
}

const VERSION = "0.0.0-test";
const SERVING_MS = 30_000;

const HARDWARE: Hardware = {
  machine_model: "Test1,1",
  chip_name: "Test chip",
  chip_family: "Unknown",
  chip_tier: "Unknown",
  memory_gb: 16,
  memory_available_gb: 8,
  cpu_cores: { total: 2, performance: 2, efficiency: 0 },
  gpu_cores: 0,
  memory_bandwidth_gbs: 50,
};

const METRICS: LiveMetrics = {
  memory_pressure: 0.1,
  cpu_usage: 0.1,
  thermal_state: "nominal",
  memoryTotalBytes: 16 * 1024 ** 3,
  memoryAvailableBytes: 8 * 1024 ** 3,
};

const clock = systemClock();
const random = systemRandom();
const ids = createIds(random);

const served = (engine: Engine): ServedModel => ({
  id: engine.model.id,
  // All engines of one id are the same build: a second hash under the same id would be refused.
  hash: () => Promise.resolve({ manifestSha256: "a".repeat(64) }),
  open: () => Promise.resolve(engine),
});

const joinProvider = async <E extends Engine>(
  network: { readonly coordinator: Coordinator; readonly admin: AdminOperations; readonly log: MemoryLog },
  engine: E,
): Promise<JoinedProvider<E>> => {
  const dir = await tempDir();
  const { token, id: tokenId } = await network.admin.createJoinToken({});
  const servings: ProviderServing[] = [];
  const provider = await startProvider(
    {
      clock,
      random,
      log: network.log.log.with({ side: "provider" }),
      signer: await openSoftwareSigner(join(dir.path, "identity.key")),
      readMetrics: () => Promise.resolve(METRICS),
    },
    {
      dataDir: dir.path,
      version: VERSION,
      coordinatorUrl: network.coordinator.providerUrl,
      joinToken: token,
      hardware: HARDWARE,
      system: () => ({
        os: { platform: "linux", version: "test", arch: "x64" },
        posture: {
          sip_enabled: null,
          secure_boot_enabled: null,
          authenticated_root_enabled: null,
          core_dumps_disabled: null,
        },
        build_sha256: null,
        native_sha256: null,
      }),
      model: served(engine),
      events: {
        onPhase: () => undefined,
        onServing: (serving) => void servings.push(serving),
        onFault: () => undefined,
      },
    },
  );
  await waitFor("the provider to serve", () => servings.length > 0, SERVING_MS);
  return {
    provider,
    engine,
    tokenId,
    servings,
    dataDir: dir.path,
    async [Symbol.asyncDispose]() {
      await provider.stop({ graceMs: 0 });
      await dir[Symbol.asyncDispose]();
    },
  };
};

export interface NetworkOptions<E extends Engine> {
  /** One provider for each; all serve the same model. */
  readonly engines: readonly E[];
  readonly coordinator?: Partial<CoordinatorOptions>;
}

/** Resolves when every provider serves: the next request succeeds. */
export const startNetwork = async <E extends Engine>(options: NetworkOptions<E>): Promise<Network<E>> => {
  const dir = await tempDir();
  const log = memoryLog();
  const store = openStore({ clock }, join(dir.path, "coordinator.db"));
  const signer = await openSoftwareSigner(join(dir.path, "coordinator.key"));
  const coordinator = await startCoordinator(
    { clock, random, ids, log: log.log.with({ side: "coordinator" }), store, signer, version: VERSION },
    { ...COORDINATOR_DEFAULTS, port: 0, ...options.coordinator },
  );
  const admin = createAdminOperations(
    { clock, ids, store },
    { url: coordinator.providerUrl, fingerprint: signer.fingerprint },
  );
  const { key, id: keyId } = await admin.createKey({ name: "test" });
  const providers: JoinedProvider<E>[] = [];
  const joined = async (engine: E): Promise<JoinedProvider<E>> => {
    const provider = await joinProvider({ coordinator, admin, log }, engine);
    providers.push(provider);
    return provider;
  };
  for (const engine of options.engines) await joined(engine);
  return {
    url: coordinator.url,
    key,
    keyId,
    model: options.engines[0]?.model.id ?? "none",
    coordinator,
    admin,
    log,
    providers,
    join: joined,
    async [Symbol.asyncDispose]() {
      await Promise.all(providers.map((provider) => provider[Symbol.asyncDispose]()));
      await coordinator.stop();
      await dir[Symbol.asyncDispose]();
    },
  };
};

/** `start --local` with this engine. */
export const startLocal = async <E extends Engine>(engine: E): Promise<LocalNetwork<E>> => {
  const dir = await tempDir();
  const log = memoryLog();
  const provider = await startLocalProvider(
    { clock, random, ids, log: log.log },
    {
      dataDir: dir.path,
      version: VERSION,
      host: "127.0.0.1",
      port: 0,
      providerId: "prov_test",
      model: served(engine),
      events: { onPhase: () => undefined, onServing: () => undefined, onFault: () => undefined },
      onListening: () => undefined,
    },
  );
  return {
    url: provider.url,
    key: provider.apiKey,
    model: engine.model.id,
    provider,
    engine,
    log,
    dataDir: dir.path,
    async [Symbol.asyncDispose]() {
      await provider.stop({ graceMs: 0 });
      await dir[Symbol.asyncDispose]();
    },
  };
};

export type EndpointName = "coordinator" | "local";
export const ENDPOINT_NAMES: readonly EndpointName[] = ["coordinator", "local"];

/** Both kinds of server with an engine each, for tables of tests that are run twice. */
export interface BothEndpoints<E extends Engine> extends AsyncDisposable {
  readonly network: Network<E>;
  readonly local: LocalNetwork<E>;
  at(name: EndpointName): Endpoint & { readonly engine: E; readonly log: MemoryLog };
}

export const startBoth = async <E extends Engine>(
  open: (name: EndpointName) => E | Promise<E>,
  coordinator: Partial<CoordinatorOptions> = {},
): Promise<BothEndpoints<E>> => {
  const engine = await open("coordinator");
  const network = await startNetwork({ engines: [engine], coordinator });
  const local = await startLocal(await open("local"));
  return {
    network,
    local,
    at: (name) => (name === "local" ? local : { ...network, engine }),
    async [Symbol.asyncDispose]() {
      await Promise.all([network[Symbol.asyncDispose](), local[Symbol.asyncDispose]()]);
    },
  };
};

/** A request with the endpoint's key. */
export const request = (endpoint: Endpoint, path: string, init: RequestInit = {}): Promise<Response> =>
  fetch(`${endpoint.url}${path}`, {
    ...init,
    headers: { authorization: `Bearer ${endpoint.key}`, ...(init.headers as Record<string, string>) },
  });

export const postChat = (
  endpoint: Endpoint,
  body: Readonly<Record<string, unknown>>,
  init: RequestInit = {},
): Promise<Response> =>
  request(endpoint, "/v1/chat/completions", {
    method: "POST",
    body: JSON.stringify({ model: endpoint.model, messages: [{ role: "user", content: "Hi" }], ...body }),
    ...init,
  });
