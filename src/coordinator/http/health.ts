/** `GET /health`: whether the process runs; always 200. */
import { json, type HttpDeps, type Reply } from "./route.ts";

export const readHealth = (deps: HttpDeps): Reply =>
  json({
    status: "ok",
    draining: deps.gate.draining,
    providers: deps.dispatch.registry.size,
    version: deps.version,
  });
