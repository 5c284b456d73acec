/** `GET /openapi.json`: the description of the public routes, made from the schemas they use. */
import { chatOpenApi } from "../../dialects/openapi.ts";
import { json, type HttpDeps, type Reply } from "./route.ts";

let made: { readonly version: string; readonly document: unknown } | null = null;

/** Made once: it takes milliseconds, and anybody may ask. */
export const readOpenApi = (deps: Pick<HttpDeps, "version">): Reply => {
  if (made?.version !== deps.version) made = { version: deps.version, document: chatOpenApi(deps.version) };
  return json(made.document);
};
