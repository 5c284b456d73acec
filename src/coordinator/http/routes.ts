/** Every route of the coordinator on one page; access is a required column. */
import { Fault } from "../../core/fault.ts";
import { unknownEndpoint } from "../../core/http.ts";
import { PROVIDER_PATH } from "../address.ts";
import { createChatCompletion } from "./chat-completions.ts";
import { readHealth } from "./health.ts";
import { listModels, retrieveModel } from "./models.ts";
import { readOpenApi } from "./openapi.ts";
import { readReadyz } from "./readyz.ts";
import type { Route } from "./route.ts";

const upgradeOnly = (): never => {
  throw new Fault("bad_request", "this endpoint takes WebSocket upgrades only");
};

export const ROUTES = [
  { method: "GET", path: "/health", access: "public", gated: false, handler: readHealth },
  { method: "GET", path: "/readyz", access: "public", gated: false, handler: readReadyz },
  { method: "GET", path: "/openapi.json", access: "public", gated: false, handler: readOpenApi },
  { method: "GET", path: "/v1/models", access: "key", gated: false, handler: listModels },
  { method: "GET", path: "/v1/models/{id}", access: "key", gated: false, handler: retrieveModel },
  { method: "POST", path: "/v1/chat/completions", access: "key", gated: true, handler: createChatCompletion },
  { method: "GET", path: PROVIDER_PATH, access: "provider", gated: false, handler: upgradeOnly },
] as const satisfies readonly Route[];

export interface Match {
  readonly route: Route;
  readonly param: string;
}

/** `/v1/models/{id}` also takes ids with a slash in them, such as `org/name`. */
const matchPath = (pattern: string, path: string): string | null => {
  const open = pattern.indexOf("{");
  if (open < 0) return pattern === path ? "" : null;
  const rest = path.startsWith(pattern.slice(0, open)) ? path.slice(open) : "";
  if (rest === "") return null;
  try {
    return decodeURIComponent(rest);
  } catch {
    return null; // not UTF-8: no path of ours
  }
};

/** Throws `endpoint_unknown` or `not_found` for a path nobody knows, `method_not_allowed` for a known one asked the wrong way. */
export const matchRoute = (method: string, path: string): Match => {
  let known = false;
  for (const route of ROUTES) {
    const param = matchPath(route.path, path);
    if (param === null) continue;
    if (route.method === method || (method === "HEAD" && route.method === "GET")) return { route, param };
    known = true;
  }
  if (known) throw new Fault("method_not_allowed", `${method} is not allowed on ${path}`);
  throw unknownEndpoint(method, path);
};
