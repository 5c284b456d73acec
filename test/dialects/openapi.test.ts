/** The document we serve: valid, complete, and strict enough that validating against it means something. */
import { describe, expect, test } from "bun:test";
import { Fault, FAULTS, type FaultCode } from "../../src/core/fault.ts";
import { toHttpBody, toStreamErrorBody } from "../../src/core/fault-render.ts";
import { chatRequestSchema } from "../../src/dialects/chat/request.ts";
import { renderModel, renderModelList } from "../../src/dialects/models.ts";
import { chatOpenApi } from "../../src/dialects/openapi.ts";
import { createResponseValidator } from "../support/openapi-validate.ts";

const document = chatOpenApi("0.1.0");
const validator = createResponseValidator(JSON.parse(JSON.stringify(document)));

/** Every object schema in a schema. */
const objectsOf = (value: unknown, found: Record<string, unknown>[] = []): Record<string, unknown>[] => {
  if (typeof value !== "object" || value === null) return found;
  if ((value as Record<string, unknown>)["properties"] !== undefined) found.push(value as Record<string, unknown>);
  for (const child of Object.values(value)) objectsOf(child, found);
  return found;
};

describe("the document", () => {
  test("names every public route", () => {
    expect(Object.keys(document.paths).toSorted()).toEqual(
      [
        "/health",
        "/openapi.json",
        "/readyz",
        "/v1/chat/completions",
        "/v1/models",
        "/v1/models/{id}",
        "/ws/provider",
      ].toSorted(),
    );
    expect([document.openapi, document.info.version]).toEqual(["3.1.0", "0.1.0"]);
  });

  test("every reference leads somewhere", () => {
    const names = [...JSON.stringify(document).matchAll(/"\$ref":"#\/components\/schemas\/([^"]+)"/g)].map(
      ([, name]) => name,
    );
    expect(names.length).toBeGreaterThan(10);
    expect(names.filter((name) => !(String(name) in document.components.schemas))).toEqual([]);
  });

  test("our own objects allow no unknown keys, the request allows any", () => {
    const { ChatCompletionRequest, ...answers } = document.components.schemas;
    const open = objectsOf(answers).filter((schema) => schema["additionalProperties"] !== false);
    expect(open).toEqual([]);
    expect(ChatCompletionRequest["additionalProperties"]).toBeUndefined();
    expect(Object.keys(ChatCompletionRequest["properties"] ?? {})).toEqual(Object.keys(chatRequestSchema.shape));
  });

  test("every status of a fault a consumer can see at the chat route is described", () => {
    const described = Object.keys(document.paths["/v1/chat/completions"].post.responses);
    const elsewhere: ReadonlySet<FaultCode> = new Set(["forbidden", "provider_rejected", "method_not_allowed"]);
    const codes = (Object.keys(FAULTS) as FaultCode[]).filter(
      (code) => !elsewhere.has(code) && FAULTS[code].status !== 499,
    );
    expect(codes.filter((code) => !described.includes(String(FAULTS[code].status)))).toEqual([]);
  });
});

describe("what it says of answers", () => {
  test("models, health, readiness", () => {
    const entry = { id: "darkbloom-demo", createdSec: 1_700_000_000, contextTokens: 512 };
    validator.json("GET", "/v1/models", 200, renderModelList([entry, { id: "b", createdSec: 1, ownedBy: "me" }]));
    validator.json("GET", "/v1/models/darkbloom-demo", 200, renderModel(entry));
    validator.json("GET", "/health", 200, { status: "ok", draining: false, providers: 0, version: "0.1.0" });
    const readyz = { ready: false, draining: true, inflight: 3, health_reason: "draining" };
    validator.json("GET", "/readyz", 503, readyz);
    validator.json("GET", "/readyz", 200, { ...readyz, health_reason: null });
    expect(() => validator.json("GET", "/readyz", 200, { ...readyz, extra: 1 })).toThrow("additional properties");
    expect(() => validator.json("GET", "/health", 200, { status: "ok" })).toThrow("required property");
    expect(() => validator.json("GET", "/v1/models/x", 200, { ...renderModel(entry), id: 5 })).toThrow(
      "must be string",
    );
  });

  test("every fault's body, over HTTP and in a stream", () => {
    for (const code of Object.keys(FAULTS) as FaultCode[]) {
      validator.error(toHttpBody(new Fault(code, "m")));
      validator.error(toHttpBody(new Fault(code, "m", { param: "n", reason: "r" })));
      validator.chunk(toStreamErrorBody(new Fault(code, "m")));
    }
    validator.json("POST", "/v1/chat/completions", 429, toHttpBody(new Fault("draining", "m")));
    expect(() => validator.error({ error: { type: "a", message: "b", code: "c" } })).toThrow("'param'");
    expect(() => validator.chunk({ error: { message: "b" } })).toThrow("required property");
  });

  test("an unknown path or status is no silent pass", () => {
    expect(() => validator.json("GET", "/v1/nothing", 200, {})).toThrow("no path /v1/nothing");
    expect(() => validator.json("POST", "/v1/chat/completions", 418, {})).toThrow("418");
  });
});
