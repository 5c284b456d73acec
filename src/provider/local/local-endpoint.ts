/** The OpenAI endpoint of `start --local`: one key, one machine, no coordinator; same bodies and errors as the coordinator's. */
import {
  bearerToken,
  constantTimeEqual,
  faultResponse,
  jsonResponse,
  pathOf,
  requestIdOf,
  unknownEndpoint,
} from "../../core/http.ts";
import { sleep, type Clock } from "../../core/clock.ts";
import { Fault, toFault } from "../../core/fault.ts";
import type { Ids } from "../../core/ids.ts";
import { SERVER_BODY_BYTES_MAX } from "../../core/limits.ts";
import { errorFields, type Log } from "../../core/log.ts";
import { chatOpenApi } from "../../dialects/openapi.ts";
import { renderModel, renderModelList, type ModelEntry } from "../../dialects/models.ts";
import type { Engine } from "../../engine/engine.ts";
import { isLoopbackHost } from "../link/coordinator-url.ts";
import { LocalChat } from "./local-chat.ts";
import type { Slots } from "../slots.ts";

export interface LocalEndpointDeps {
  readonly clock: Clock;
  readonly log: Log;
  readonly ids: Ids;
  readonly slots: Pick<Slots, "acquire" | "views" | "isServing">;
}

export interface LocalEndpointOptions {
  readonly host: string;
  /** 0 = any free port. */
  readonly port: number;
  readonly apiKey: string;
  readonly version: string;
  /** Silence after which a stream gets keep-alive comments; 0 = never. */
  readonly keepAliveMs?: number;
}

export interface LocalEndpoint {
  /** `http://host:port` without `/v1`; a wildcard address shows as 127.0.0.1. */
  readonly url: string;
  readonly host: string;
  readonly port: number;
  readonly running: number;
  /** Refuses new requests, lets running ones end within the time, then closes everything. */
  stop(options: { readonly graceMs: number }): Promise<void>;
}

const KEEP_ALIVE_MS = 15_000;

const CORS = { "access-control-allow-origin": "*" } as const;
const PREFLIGHT = {
  ...CORS,
  "access-control-allow-methods": "GET, POST, OPTIONS",
  // A browser takes no `*` for Authorization.
  "access-control-allow-headers": "Authorization, Content-Type, X-Request-ID, *",
  "access-control-max-age": "600",
} as const;

type Access = "public" | "key";
interface Call {
  readonly request: Request;
  readonly server: Bun.Server<undefined>;
  readonly headers: Readonly<Record<string, string>>;
  readonly requestId: string;
  /** What the path's `*` matched. */
  readonly rest: string;
}
interface Route {
  readonly method: "GET" | "POST";
  /** A trailing `*` takes the rest of the path, slashes included: model ids have them. */
  readonly path: string;
  readonly access: Access;
  readonly handler: (call: Call) => Response | Promise<Response>;
}

const LOCAL_PATHS = ["/v1/chat/completions", "/v1/models", "/v1/models/{id}", "/health", "/openapi.json"] as const;

const localOpenApi = (version: string): unknown => {
  const document = chatOpenApi(version);
  const paths = Object.fromEntries(LOCAL_PATHS.map((path) => [path, document.paths[path]]));
  const { bearer } = document.components.securitySchemes;
  return { ...document, paths, components: { ...document.components, securitySchemes: { bearer } } };
};

class LocalServer {
  readonly #deps: LocalEndpointDeps;
  readonly #options: LocalEndpointOptions;
  readonly #startedSec: number;
  readonly #routes: readonly Route[];
  readonly chat: LocalChat;

  constructor(deps: LocalEndpointDeps, options: LocalEndpointOptions) {
    this.#deps = deps;
    this.#options = options;
    this.#startedSec = Math.floor(deps.clock.nowMs() / 1000);
    this.chat = new LocalChat(deps, { keepAliveMs: options.keepAliveMs ?? KEEP_ALIVE_MS });
    const health = (call: Call): Response => jsonResponse(this.#health(), { headers: call.headers });
    this.#routes = [
      { method: "GET", path: "/", access: "public", handler: (call) => this.#index(call) },
      { method: "GET", path: "/health", access: "public", handler: health },
      { method: "GET", path: "/v1/health", access: "public", handler: health },
      { method: "GET", path: "/openapi.json", access: "key", handler: (call) => this.#openApi(call) },
      { method: "GET", path: "/v1/models", access: "key", handler: (call) => this.#list(call) },
      { method: "GET", path: "/v1/models/*", access: "key", handler: (call) => this.#model(call) },
      { method: "POST", path: "/v1/chat/completions", access: "key", handler: (call) => this.chat.answer(call) },
    ];
  }

  /** The one place that makes a Response of a Fault. */
  async fetch(request: Request, server: Bun.Server<undefined>): Promise<Response> {
    const { clock, log, ids } = this.#deps;
    const startMs = clock.monotonicMs();
    const requestId = requestIdOf(request, ids);
    const headers = { ...CORS, "x-request-id": requestId };
    if (request.method === "OPTIONS") return new Response(null, { status: 204, headers: { ...headers, ...PREFLIGHT } });
    let route: Route | null = null;
    let response: Response;
    try {
      const found = this.#find(request.method, pathOf(request));
      route = found.route;
      // A draining endpoint says so before it looks at keys: the answer is the same for everyone.
      if (route.method === "POST") this.chat.refuseWhenDraining();
      if (route.access === "key") this.#authenticate(request);
      response = await route.handler({ request, server, headers, requestId, rest: found.rest });
    } catch (thrown) {
      const fault = toFault(thrown);
      if (fault.code === "internal") log.error("request_broke", { requestId, ...errorFields(thrown) });
      response = faultResponse(fault, headers);
    }
    const tookMs = Math.round(clock.monotonicMs() - startMs);
    log.info("request_answered", { requestId, route: route?.path ?? "unmatched", status: response.status, tookMs });
    return response;
  }

  #find(method: string, path: string): { readonly route: Route; readonly rest: string } {
    let known = false;
    for (const route of this.#routes) {
      const rest = matchPath(route.path, path);
      if (rest === null) continue;
      known = true;
      if (route.method === method || (method === "HEAD" && route.method === "GET")) return { route, rest };
    }
    if (known) throw new Fault("method_not_allowed", `method ${method} is not allowed for this endpoint`);
    throw unknownEndpoint(method, path);
  }

  #authenticate(request: Request): void {
    const given = bearerToken(request);
    if (given === null) throw new Fault("unauthenticated", "missing credentials — use Authorization: Bearer <token>");
    if (!constantTimeEqual(given, this.#options.apiKey))
      throw new Fault("unauthenticated", "invalid API key — the local key is in local.json of the data folder");
  }

  #health() {
    const serving = this.#deps.slots.views().some((view) => this.#deps.slots.isServing(view.modelId));
    return {
      status: "ok",
      draining: this.chat.draining,
      providers: serving ? 1 : 0,
      version: this.#options.version,
    };
  }

  #index(call: Call): Response {
    return jsonResponse(
      {
        name: "darkbloom",
        version: this.#options.version,
        endpoints: this.#routes.map(({ method, path }) => `${method} ${path}`),
      },
      { headers: call.headers },
    );
  }

  #openApi(call: Call): Response {
    return jsonResponse(localOpenApi(this.#options.version), { headers: call.headers });
  }

  #entries(): ModelEntry[] {
    return this.#deps.slots.views().map(({ modelId, engine }) => toEntry(modelId, this.#startedSec, engine));
  }

  #list(call: Call): Response {
    return jsonResponse(renderModelList(this.#entries()), { headers: call.headers });
  }

  #model(call: Call): Response {
    const entry = this.#entries().find(({ id }) => id === call.rest);
    if (entry === undefined) throw new Fault("model_not_found", "model not found", { param: "model" });
    return jsonResponse(renderModel(entry), { headers: call.headers });
  }
}

const toEntry = (id: string, createdSec: number, engine: Engine | null): ModelEntry => ({
  id,
  createdSec,
  ...(engine === null ? {} : { contextTokens: engine.model.contextTokens }),
});

/** What the `*` takes, "" for an exact match, null for none. */
const matchPath = (pattern: string, path: string): string | null => {
  if (!pattern.endsWith("*")) return pattern === path ? "" : null;
  const prefix = pattern.slice(0, -1);
  if (!path.startsWith(prefix) || path.length === prefix.length) return null;
  try {
    return decodeURIComponent(path.slice(prefix.length));
  } catch {
    // A broken escape names no model.
    return path.slice(prefix.length);
  }
};

const bindFault = (options: LocalEndpointOptions, thrown: unknown): Fault => {
  const { code } = thrown as NodeJS.ErrnoException;
  const at = `${options.host}:${options.port}`;
  if (code === "EADDRINUSE")
    return new Fault("address_in_use", `${at} is in use by another program`, {
      hint: "choose another with --port <n>, or --port 0 for any free one",
      cause: thrown,
    });
  return new Fault("io_failed", `cannot listen on ${at}${code === undefined ? "" : ` (${code})`}`, {
    hint: "choose another address or port: --port <n>",
    cause: thrown,
  });
};

/** Time the last bytes get to leave after their completion has ended. */
const FLUSH_MS = 500;
const FLUSH_POLL_MS = 5;

const untilSent = async (clock: Clock, server: Bun.Server<undefined>): Promise<void> => {
  const untilMs = clock.monotonicMs() + FLUSH_MS;
  while (server.pendingRequests > 0 && clock.monotonicMs() < untilMs) await sleep(clock, FLUSH_POLL_MS);
};

const urlHost = (host: string): string => {
  if (host === "0.0.0.0" || host === "::" || host === "[::]") return "127.0.0.1";
  return host.includes(":") && !host.startsWith("[") ? `[${host}]` : host;
};

/** Resolves once the port is bound: the next request will be answered. Faults: `address_in_use`, `io_failed`. */
export const startLocalEndpoint = (deps: LocalEndpointDeps, options: LocalEndpointOptions): LocalEndpoint => {
  const local = new LocalServer(deps, options);
  let server: Bun.Server<undefined>;
  try {
    server = Bun.serve({
      hostname: options.host,
      port: options.port,
      fetch: (request, server) => local.fetch(request, server),
      // Whatever escapes fetch is a bug of the server itself; Bun's own page would show the source.
      error: (error) => {
        deps.log.error("request_broke", errorFields(error));
        return faultResponse(toFault(error), CORS);
      },
      maxRequestBodySize: SERVER_BODY_BYTES_MAX,
      development: false,
      // Without development mode Bun shares ports: a second endpoint would bind and take half of the requests.
      reusePort: false,
    });
  } catch (error) {
    throw bindFault(options, error);
  }
  if (!isLoopbackHost(options.host))
    deps.log.warn("local_endpoint_exposed", {
      host: options.host,
      hint: "anyone who has the key can reach it, without TLS",
    });
  const port = server.port ?? options.port;
  return {
    url: `http://${urlHost(options.host)}:${port}`,
    host: options.host,
    port,
    get running() {
      return local.chat.running;
    },
    async stop({ graceMs }) {
      await local.chat.drain(graceMs);
      // An ended completion is not yet a sent answer. New connections are refused from here on.
      void server.stop(false);
      await untilSent(deps.clock, server);
      await server.stop(true);
    },
  };
};
