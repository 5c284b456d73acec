/** A running coordinator: one server for consumers and providers, put together from its parts. */
import type { Server } from "bun";
import { isIP } from "node:net";
import type { Clock } from "../core/clock.ts";
import { Fault } from "../core/fault.ts";
import type { Ids, Random } from "../core/ids.ts";
import { SERVER_BODY_BYTES_MAX } from "../core/limits.ts";
import type { Log } from "../core/log.ts";
import type { Signer } from "../trust/signer.ts";
import { addressOf, type Address } from "./address.ts";
import { startAdminServer } from "./admin/server.ts";
import { DrainGate } from "./drain-gate.ts";
import { answer } from "./http/answer.ts";
import { clientIp } from "./http/client-ip.ts";
import { readinessOf, type Readiness } from "./http/readyz.ts";
import type { HttpDeps } from "./http/route.ts";
import type { CoordinatorOptions } from "./options.ts";
import { pickLeastLoaded } from "./routing/pick.ts";
import { ProviderRegistry } from "./routing/registry.ts";
import { WaitingRoom } from "./routing/waiting-room.ts";
import { IdentityMemory } from "./session/identity-memory.ts";
import { ProviderSockets, type SocketData } from "./session/provider-sockets.ts";
import type { Store } from "./store/store.ts";

export interface CoordinatorDeps {
  readonly clock: Clock;
  readonly random: Random;
  readonly ids: Ids;
  readonly log: Log;
  /** Closed by `stop`. */
  readonly store: Store;
  /** The coordinator's identity. */
  readonly signer: Signer;
  /** The program's version. */
  readonly version: string;
}

export interface Coordinator extends Address, AsyncDisposable {
  /** Refuses new work, lets running requests finish for up to `windowMs`, then stops. */
  drain(windowMs: number): Promise<void>;
  /** Ends everything at once. Stopping twice is harmless. */
  stop(): Promise<void>;
  health(): Readiness & { readonly providers: number };
}

const isLoopback = (host: string): boolean =>
  host === "localhost" || host === "::1" || (isIP(host) === 4 && host.startsWith("127."));

const checkOptions = (options: CoordinatorOptions): void => {
  addressOf(options, options.port); // a public URL that is none would end up in every join token
  if (options.corsOrigin !== null && !/^[\x21-\x7e]+$/.test(options.corsOrigin))
    throw new Fault("config_invalid", "the CORS origin can be no header value", {
      hint: "write it like https://app.example, or * for any",
    });
  if ((options.tlsCert === null) !== (options.tlsKey === null))
    throw new Fault("config_invalid", "a TLS certificate and its key go together", {
      hint: "give both --tls-cert and --tls-key",
    });
  if (!isLoopback(options.host) && options.tlsCert === null && !options.insecureLan)
    throw new Fault("config_invalid", `listening on ${options.host} without TLS would send prompts in the clear`, {
      hint: "give --tls-cert and --tls-key, or --insecure-lan in a network you trust",
    });
};

const toBindFault = (thrown: unknown, options: CoordinatorOptions): unknown => {
  const code = thrown instanceof Error && "code" in thrown ? thrown.code : null;
  if (code === "EADDRINUSE")
    return new Fault("address_in_use", `port ${options.port} on ${options.host} is in use`, {
      hint: "choose another with --port, or 0 for any free one",
      cause: thrown,
    });
  if (code === "EADDRNOTAVAIL" || code === "EACCES" || code === "ENOTFOUND")
    return new Fault("config_invalid", `cannot listen on ${options.host}:${options.port} (${code})`, {
      hint: "check --host and --port",
      cause: thrown,
    });
  if (options.tlsCert !== null)
    return new Fault("config_invalid", "the TLS certificate or key cannot be used", {
      hint: "both must be PEM files that belong together",
      cause: thrown,
    });
  return thrown;
};

interface Parts {
  readonly http: HttpDeps;
  readonly sockets: ProviderSockets;
  readonly gate: DrainGate;
  readonly registry: ProviderRegistry;
}

const assemble = (deps: CoordinatorDeps, options: CoordinatorOptions): Parts => {
  const room = new WaitingRoom(deps.clock);
  const registry = new ProviderRegistry(room);
  const gate = new DrainGate();
  const memory = new IdentityMemory(deps.clock);
  const sockets = new ProviderSockets({ ...deps, options, registry, memory }, { ...deps, options });
  const dispatch = { ...deps, options, registry, room, pick: pickLeastLoaded };
  return { http: { ...deps, options, gate, dispatch }, sockets, gate, registry };
};

const listen = (parts: Parts, options: CoordinatorOptions): Server<SocketData> => {
  const { http, sockets, gate } = parts;
  const tls = options.tlsCert === null || options.tlsKey === null ? {} : { cert: options.tlsCert, key: options.tlsKey };
  try {
    return Bun.serve<SocketData>({
      hostname: options.host,
      port: options.port,
      ...(options.tlsCert === null ? {} : { tls }),
      maxRequestBodySize: SERVER_BODY_BYTES_MAX,
      development: false,
      // Bun shares the port with other processes when `development` is off, unless told not to.
      reusePort: false,
      fetch: (request, server) => {
        const remote = server.requestIP(request)?.address ?? "unknown";
        const ip = clientIp(remote, request.headers.get("x-forwarded-for"), options.trustedProxies);
        return answer(http, request, { ip, limitSilence: (sec) => server.timeout(request, sec) }, () => {
          if (gate.draining)
            throw new Fault("draining", "the coordinator is draining", { retryAfterMs: 3_000, status: 503 });
          sockets.upgrade(server, request, ip);
        });
      },
      websocket: sockets.handler(),
    });
  } catch (thrown) {
    throw toBindFault(thrown, options);
  }
};

/** Throws `config_invalid` for an unsafe or impossible bind, a public URL or CORS origin that is none, `address_in_use`, `already_running`. */
export const startCoordinator = async (deps: CoordinatorDeps, options: CoordinatorOptions): Promise<Coordinator> => {
  checkOptions(options);
  if (!isLoopback(options.host) && options.tlsCert === null)
    deps.log.warn("listening_without_tls", { host: options.host });
  const parts = assemble(deps, options);
  let server: Server<SocketData>;
  try {
    server = listen(parts, options);
  } catch (thrown) {
    parts.sockets.stop();
    throw thrown;
  }
  const { url, providerUrl } = addressOf(options, server.port ?? options.port);
  let stopped: Promise<void> | null = null;
  const stopAll = async (): Promise<void> => {
    parts.gate.close();
    parts.sockets.stop();
    await server.stop(true);
    await admin?.stop();
    deps.store.close();
  };
  const stop = (): Promise<void> => (stopped ??= stopAll());
  /** What has ended here may still be on its way to its consumer: the server's own end waits for that. */
  const finishAll = async (): Promise<void> => {
    await parts.gate.idle();
    parts.sockets.stop();
    await server.stop();
  };
  let admin: Awaited<ReturnType<typeof startAdminServer>> = null;
  try {
    admin = await startAdminServer(deps, {
      dataDir: options.dataDir,
      address: { url: providerUrl, fingerprint: deps.signer.fingerprint },
      onTokenRevoked: (tokenId) => parts.sockets.dropToken(tokenId),
    });
  } catch (thrown) {
    await stop();
    throw thrown;
  }
  return {
    url,
    providerUrl,
    stop,
    async drain(windowMs) {
      parts.gate.close();
      const { promise: late, resolve } = Promise.withResolvers<void>();
      const timer = deps.clock.after(windowMs, resolve);
      await Promise.race([finishAll(), late]);
      timer.cancel();
      await stop();
    },
    health: () => ({ ...readinessOf({ gate: parts.gate, store: deps.store }), providers: parts.registry.size }),
    [Symbol.asyncDispose]: stop,
  };
};
