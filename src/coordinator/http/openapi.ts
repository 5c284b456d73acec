/** `GET /openapi.json`: the description of the public routes, made from the schemas they use. */
import { chatOpenApi } from "../../dialects/openapi.ts";
import { json, type HttpDeps, type Reply } from "./route.ts";

export const readOpenApi = (deps: HttpDeps): Reply => json(chatOpenApi(deps.version));
