/** Checks answers against an OpenAPI document: ours, or the one OpenAI publishes. */
import { Ajv2020, type ValidateFunction } from "ajv/dist/2020.js";
import addFormats from "ajv-formats";

type JsonObject = { readonly [key: string]: unknown };

export interface ResponseValidator {
  /** A whole JSON answer. Throws with every problem found, also when the document knows no such operation or status. */
  json(method: string, path: string, status: number, body: unknown): void;
  /** The data of one SSE event of POST /v1/chat/completions, `[DONE]` excepted. */
  chunk(body: unknown): void;
  /** An error body, `{"error":{…}}`, whatever its status. */
  error(body: unknown): void;
  /** A request body of POST /v1/chat/completions. */
  request(body: unknown): void;
}

/** Where in the document the things are that every chat server has. */
interface Layout {
  /** What our paths start with and the document's do not. */
  readonly prefix: string;
  readonly chat: string;
  /** Component that describes an error body, or what is under its `error` key. */
  readonly error: { readonly component: string; readonly isInner: boolean };
}

const OURS: Layout = { prefix: "", chat: "/v1/chat/completions", error: { component: "Error", isInner: false } };
const OPENAI: Layout = { prefix: "/v1", chat: "/chat/completions", error: { component: "Error", isInner: true } };

const isObject = (value: unknown): value is JsonObject =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** `nullable: true` is no word of JSON Schema 2020-12: S becomes anyOf [S, null]. */
const replaceNullable = (value: unknown): unknown => {
  if (Array.isArray(value)) return value.map(replaceNullable);
  if (!isObject(value)) return value;
  const { nullable, ...rest } = Object.fromEntries(
    Object.entries(value).map(([key, child]) => [key, replaceNullable(child)]),
  );
  if (nullable === true) return { anyOf: [rest, { type: "null" }] };
  return nullable === undefined ? rest : { ...rest, nullable };
};

const at = (value: unknown, ...keys: readonly string[]): unknown =>
  keys.reduce<unknown>((held, key) => (isObject(held) ? held[key] : undefined), value);

const matches = (template: string, path: string): boolean =>
  new RegExp(`^${template.replaceAll(/\{[^}]+\}/g, "[^/]+").replaceAll(".", "\\.")}$`).test(path);

const createValidator = (document: JsonObject, layout: Layout): ResponseValidator => {
  const ajv = new Ajv2020({ strict: false, allErrors: true });
  addFormats(ajv);
  ajv.addFormat("unixtime", true);
  ajv.addSchema({ ...document, $id: "document" });
  const compiled = new Map<string, ValidateFunction>();

  const check = (pointer: readonly string[], body: unknown): void => {
    const fragment = pointer
      .map((key) => encodeURIComponent(key.replaceAll("~", "~0").replaceAll("/", "~1")))
      .join("/");
    if (at(document, ...pointer) === undefined) throw new Error(`the document has no #/${pointer.join("/")}`);
    const validate = compiled.get(fragment) ?? ajv.compile({ $ref: `document#/${fragment}` });
    compiled.set(fragment, validate);
    if (validate(body)) return;
    const problems = (validate.errors ?? []).map(
      ({ instancePath, message, params }) => `${instancePath} ${message} ${JSON.stringify(params)}`,
    );
    throw new Error(`not what #/${pointer.join("/")} describes:\n  ${problems.join("\n  ")}`);
  };
  const findPath = (path: string): string => {
    const own = path.startsWith(layout.prefix) ? path.slice(layout.prefix.length) : path;
    const template = Object.keys((document["paths"] ?? {}) as JsonObject).find((known) => matches(known, own));
    if (template === undefined) throw new Error(`the document has no path ${own}`);
    return template;
  };
  const checkError = (body: unknown): void =>
    check(["components", "schemas", layout.error.component], layout.error.isInner ? at(body, "error") : body);

  return {
    json(method, path, status, body) {
      const operation = ["paths", findPath(path), method.toLowerCase()];
      const response = [...operation, "responses", String(status)];
      const schema = [...response, "content", "application/json", "schema"];
      // OpenAI's document leaves errors out of most operations and describes them apart.
      if (layout.error.isInner && status >= 400) checkError(body);
      else check(schema, body);
    },
    chunk(body) {
      const response = ["paths", layout.chat, "post", "responses", "200"];
      if (isObject(body) && "error" in body) checkError(body);
      else check([...response, "content", "text/event-stream", "schema"], body);
    },
    error: checkError,
    request: (body) =>
      check(["paths", layout.chat, "post", "requestBody", "content", "application/json", "schema"], body),
  };
};

/** Over the document we serve at /openapi.json. */
export const createResponseValidator = (openapiDoc: unknown): ResponseValidator => {
  if (!isObject(openapiDoc)) throw new Error("an OpenAPI document is an object");
  return createValidator(openapiDoc, OURS);
};

/** Path of OpenAI's published document; checks against it are skipped by name where it is not set. */
export const OPENAI_OPENAPI_FILE = process.env["OPENAI_OPENAPI_FILE"];

/** The same over OpenAI's published document, for our paths. */
export const openPublishedValidator = async (path: string): Promise<ResponseValidator> =>
  createValidator(replaceNullable(await Bun.file(path).json()) as JsonObject, OPENAI);
