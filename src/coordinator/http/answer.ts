/** The only place where a reply or a Fault becomes a Response: request id, drain gate, access, body, CORS, access log. */
import { Fault, toFault } from "../../core/fault.ts";
import { faultResponse, jsonResponse, pathOf, readBody, requestIdOf } from "../../core/http.ts";
import { INFERENCE_BODY_BYTES_MAX } from "../../core/limits.ts";
import { errorFields } from "../../core/log.ts";
import { authenticateKey } from "../accounts/keys.ts";
import { matchRoute, type Match } from "./routes.ts";
import type { HttpDeps, Reply } from "./route.ts";

/** What the server knows about a request beyond its own text. */
export interface Connection {
  /** The consumer's address. */
  readonly ip: string;
  /** Sets after how many seconds without traffic the server drops the connection; 0 = never (native facts 8). */
  readonly limitSilence: (sec: number) => void;
}

/** What one answer tells about itself in the log; never a query, a body or a header. */
interface Access {
  readonly requestId: string;
  readonly startedMs: number;
  route: string;
  keyId: string | undefined;
}

const QUIET_ROUTES: ReadonlySet<string> = new Set(["/health", "/readyz"]);
/** Time a consumer may take without reading or asking anything once its answer is made. */
const SILENCE_SEC = 60;

const corsHeaders = (deps: HttpDeps): Record<string, string> =>
  deps.options.corsOrigin === null
    ? {}
    : {
        "Access-Control-Allow-Origin": deps.options.corsOrigin,
        "Access-Control-Allow-Methods": "GET, POST, PUT, PATCH, DELETE, OPTIONS",
        "Access-Control-Allow-Headers": "Content-Type, Authorization, X-Request-ID, *",
        "Access-Control-Expose-Headers": "X-Request-ID, X-Inference-Job-ID, X-Timing, Retry-After",
        Vary: "Origin",
      };

/** The body with its own deadline instead of the server's, whose limit would end a long prefill, too. */
const bodyReader = (deps: HttpDeps, request: Request, connection: Connection) => async (): Promise<Uint8Array> => {
  connection.limitSilence(0);
  const late = new AbortController();
  const timer = deps.clock.after(deps.options.bodyMs, () =>
    late.abort(new Fault("timeout", "the request body took too long to arrive", { status: 408 })),
  );
  try {
    return await readBody(request, INFERENCE_BODY_BYTES_MAX, AbortSignal.any([late.signal, request.signal]));
  } finally {
    timer.cancel();
  }
};

/** Order: drain, access, then whatever the handler checks (api-billing-store §2.1). */
const run = async (
  deps: HttpDeps,
  { request, connection }: { readonly request: Request; readonly connection: Connection },
  { route, param }: Match,
  access: Access,
): Promise<Reply> => {
  const leave = route.gated ? deps.gate.enter() : () => undefined;
  const release = (): void => {
    leave();
    connection.limitSilence(SILENCE_SEC);
  };
  let held = false;
  try {
    const key = route.access === "key" ? authenticateKey(deps, request) : null;
    access.keyId = key?.id;
    return await route.handler(deps, {
      request,
      signal: request.signal,
      startedMs: access.startedMs,
      param,
      key,
      body: bodyReader(deps, request, connection),
      hold: () => {
        held = true;
        return release;
      },
    });
  } finally {
    if (!held) release();
  }
};

const toResponse = (reply: Reply): Response =>
  reply.type === "json" ? jsonResponse(reply.value, { status: reply.status }) : reply.response;

const finish = (deps: HttpDeps, response: Response, request: Request, access: Access): Response => {
  response.headers.set("X-Request-ID", access.requestId);
  for (const [name, value] of Object.entries(corsHeaders(deps))) response.headers.set(name, value);
  // Load balancers ask for health every second.
  const level = QUIET_ROUTES.has(access.route) && response.ok ? "debug" : "info";
  deps.log[level]("request_answered", {
    requestId: access.requestId,
    method: request.method,
    route: access.route,
    status: response.status,
    key: access.keyId,
    tookMs: Math.round(deps.clock.monotonicMs() - access.startedMs),
  });
  return response;
};

const toFaultResponse = (deps: HttpDeps, thrown: unknown, access: Access): Response => {
  const fault = toFault(thrown);
  if (fault.code === "internal" || fault.status >= 500)
    deps.log[fault.code === "internal" ? "error" : "warn"]("request_failed", {
      requestId: access.requestId,
      ...errorFields(fault),
    });
  return faultResponse(fault);
};

/** Answers one request; `upgrade` takes over a provider's socket or throws the Fault that refuses it. */
export const answer = async (
  deps: HttpDeps,
  request: Request,
  connection: Connection,
  upgrade: () => void,
): Promise<Response | undefined> => {
  const access: Access = {
    requestId: requestIdOf(request, deps.ids),
    startedMs: deps.clock.monotonicMs(),
    route: "unmatched",
    keyId: undefined,
  };
  if (request.method === "OPTIONS") return finish(deps, new Response(null, { status: 204 }), request, access);
  try {
    const match = matchRoute(request.method, pathOf(request));
    access.route = match.route.path;
    if (match.route.access === "provider") {
      upgrade();
      return undefined;
    }
    return finish(deps, toResponse(await run(deps, { request, connection }, match, access)), request, access);
  } catch (thrown) {
    return finish(deps, toFaultResponse(deps, thrown, access), request, access);
  }
};
