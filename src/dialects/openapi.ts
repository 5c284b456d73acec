/** The OpenAPI 3.1 document of the public routes, made from the schemas the routes themselves use. */
import { z } from "zod";
import { chatRequestSchema } from "./chat/request.ts";
import { chatChunkSchema, chatCompletionSchema } from "./chat/response-schema.ts";
import { modelListSchema, modelSchema } from "./models.ts";

/** Body of every error answer (api-billing-store §1.1). */
export const errorSchema = z.strictObject({
  error: z.strictObject({
    type: z.string().min(1),
    message: z.string().min(1),
    code: z.string().min(1),
    param: z.string().nullable(),
  }),
});

export const healthSchema = z.strictObject({
  status: z.literal("ok"),
  draining: z.boolean(),
  providers: z.int().min(0),
  version: z.string(),
});

export const readyzSchema = z.strictObject({
  ready: z.boolean(),
  draining: z.boolean(),
  inflight: z.int().min(0),
  health_reason: z.string().nullable(),
});

type JsonSchema = z.core.JSONSchema.BaseSchema;

const toComponent = (schema: z.ZodType, io: "input" | "output"): JsonSchema => {
  const { $schema: _draft, ...rest } = z.toJSONSchema(schema, { io });
  return rest;
};

const ref = (name: string) => ({ $ref: `#/components/schemas/${name}` });
const json = (name: string) => ({ "application/json": { schema: ref(name) } });

const ERRORS: Readonly<Record<string, string>> = {
  "400": "The request is not valid; `param` names the field.",
  "401": "No valid API key.",
  "404": "No such model or endpoint.",
  "408": "The body took too long to arrive.",
  "413": "The body exceeds 16777216 bytes.",
  "415": "Content that is not text.",
  "422": "The model's template cannot render the messages or tools.",
  "429": "Too busy or draining; `Retry-After` tells how long to wait.",
  "500": "A bug on our side.",
  "502": "The provider failed before its first content.",
  "503": "The model is known but served by nobody right now.",
  "504": "No content came in time.",
};

const errors = (...statuses: readonly string[]) =>
  Object.fromEntries(
    statuses.map((status) => [status, { description: ERRORS[status] ?? "An error.", content: json("Error") }]),
  );

const text = { schema: { type: "string" } };

/** Headers every answer of an inference route carries once it has committed. */
const COMMIT_HEADERS = {
  "X-Request-ID": { ...text, description: "The caller's own, or one made for the request." },
  "X-Inference-Job-ID": { ...text, description: "Id of the job; the completion's id is `chatcmpl-` and this." },
  "X-Timing": { ...text, description: "JSON object of integers in microseconds." },
};

const CHAT = {
  post: {
    operationId: "createChatCompletion",
    summary: "Answers a conversation, whole or as server-sent events.",
    security: [{ bearer: [] }],
    requestBody: { required: true, content: json("ChatCompletionRequest") },
    responses: {
      "200": {
        description:
          "The answer. With `stream: true` each event's data is one chunk, the last is `[DONE]`; a failure after the first content is one event holding an Error, and then no `[DONE]` follows.",
        headers: COMMIT_HEADERS,
        content: { ...json("ChatCompletion"), "text/event-stream": { schema: ref("ChatCompletionChunk") } },
      },
      ...errors("400", "401", "404", "408", "413", "415", "422", "429", "500", "502", "503", "504"),
    },
  },
};

const read = (operationId: string, summary: string, name: string) => ({
  operationId,
  summary,
  responses: { "200": { description: summary, content: json(name) } } as Record<string, unknown>,
});

const withKey = <O extends ReturnType<typeof read>>(operation: O) => ({
  ...operation,
  security: [{ bearer: [] }],
  responses: { ...operation.responses, ...errors("401", "404", "429", "500", "503") },
});

const PATHS = {
  "/v1/chat/completions": CHAT,
  "/v1/models": { get: withKey(read("listModels", "The models that can be asked for.", "ModelList")) },
  "/v1/models/{id}": {
    get: {
      ...withKey(read("retrieveModel", "One model.", "Model")),
      parameters: [{ name: "id", in: "path", required: true, ...text }],
    },
  },
  "/health": { get: read("health", "Whether the process runs; always 200.", "Health") },
  "/readyz": {
    get: {
      ...read("readyz", "Whether new work is taken.", "Readyz"),
      responses: {
        "200": { description: "Takes new work.", content: json("Readyz") },
        "503": { description: "Draining or unhealthy; `health_reason` says why.", content: json("Readyz") },
      },
    },
  },
  "/openapi.json": {
    get: {
      operationId: "openapi",
      summary: "This document.",
      responses: {
        "200": { description: "This document.", content: { "application/json": { schema: { type: "object" } } } },
      },
    },
  },
  "/ws/provider": {
    get: {
      operationId: "connectProvider",
      summary: "WebSocket upgrade of a provider, subprotocol `darkbloom.v1`; not for API clients.",
      security: [{ provider: [] }],
      responses: { "101": { description: "The link is open." }, ...errors("400", "401", "429", "503") },
    },
  },
};

/** The whole document; `version` is the program's. */
export const chatOpenApi = (version: string) => ({
  openapi: "3.1.0",
  jsonSchemaDialect: "https://json-schema.org/draft/2020-12/schema",
  info: {
    title: "Darkbloom",
    version,
    description: "Private LLM inference behind OpenAI's API.",
    license: { name: "Apache-2.0", identifier: "Apache-2.0" },
  },
  paths: PATHS,
  components: {
    securitySchemes: {
      bearer: { type: "http", scheme: "bearer", description: "An API key, `sk-db-…`." },
      provider: { type: "http", scheme: "bearer", description: "A join token, `jt-db-…`, or a provider token." },
    },
    schemas: {
      ChatCompletionRequest: toComponent(chatRequestSchema, "input"),
      ChatCompletion: toComponent(chatCompletionSchema, "output"),
      ChatCompletionChunk: toComponent(chatChunkSchema, "output"),
      Error: toComponent(errorSchema, "output"),
      Model: toComponent(modelSchema, "output"),
      ModelList: toComponent(modelListSchema, "output"),
      Health: toComponent(healthSchema, "output"),
      Readyz: toComponent(readyzSchema, "output"),
    },
  },
});
