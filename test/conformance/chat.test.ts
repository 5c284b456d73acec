/** What our renderers write, against the document we serve and against the one OpenAI publishes. */
import { describe, expect, test } from "bun:test";
import type { CompletionEvent, CompletionTerminal } from "../../src/core/completion.ts";
import { Fault, FAULTS, type FaultCode } from "../../src/core/fault.ts";
import { toHttpBody } from "../../src/core/fault-render.ts";
import { createChatCollector, createChatStream, renderStreamError } from "../../src/dialects/chat/render.ts";
import { renderModel, renderModelList } from "../../src/dialects/models.ts";
import { chatOpenApi } from "../../src/dialects/openapi.ts";
import {
  createResponseValidator,
  OPENAI_OPENAPI_FILE,
  openPublishedValidator,
  type ResponseValidator,
} from "../support/openapi-validate.ts";
import { sseData, terminalOf } from "../support/script-stream.ts";

const IDENTITY = { id: "chatcmpl-job1", model: "darkbloom-demo", createdSec: 1_700_000_000 };
const CALL: CompletionEvent = { type: "tool_call", index: 0, id: "call_a", name: "f", arguments: "{}" };
const ANSWERS: Readonly<Record<string, readonly [readonly CompletionEvent[], CompletionTerminal]>> = {
  text: [[{ type: "text", text: "hello 😀" }], terminalOf()],
  empty: [[], terminalOf()],
  cut: [[{ type: "text", text: "hel" }], terminalOf({ finishReason: "length" })],
  "reasoning and text": [
    [
      { type: "reasoning", text: "hm" },
      { type: "text", text: "so" },
    ],
    terminalOf(),
  ],
  "tool calls": [[CALL, { ...CALL, index: 1, id: "call_b" }], terminalOf({ finishReason: "tool_calls" })],
  "text and a call in fragments": [
    [
      { type: "text", text: "let me see" },
      { type: "tool_call", index: 0, id: "a", name: "f" },
      { type: "tool_call", index: 0, arguments: "{}" },
    ],
    terminalOf(),
  ],
};
const MODELS = [{ id: "darkbloom-demo", createdSec: 1_700_000_000, contextTokens: 512 }];

const checks = (open: () => Promise<ResponseValidator>): void => {
  test.each(Object.entries(ANSWERS))("answer: %s", async (_name, [events, terminal]) => {
    const validator = await open();
    const collector = createChatCollector(IDENTITY);
    collector.add(events);
    validator.json("POST", "/v1/chat/completions", 200, collector.finish(terminal));
    for (const includeUsage of [true, false]) {
      const stream = createChatStream(IDENTITY, { includeUsage });
      const data = sseData(events.map((event) => stream.chunk([event])).join("") + stream.finish(terminal));
      expect(data.at(-1)).toBe("[DONE]");
      expect(data.length).toBeGreaterThan(2);
      for (const chunk of data.slice(0, -1)) validator.chunk(chunk);
    }
  });

  test("errors", async () => {
    const validator = await open();
    for (const code of Object.keys(FAULTS) as FaultCode[]) {
      validator.error(toHttpBody(new Fault(code, "m")));
      for (const event of sseData(renderStreamError(new Fault(code, "m")))) validator.chunk(event);
    }
    validator.json("POST", "/v1/chat/completions", 400, toHttpBody(new Fault("bad_request", "m", { param: "n" })));
  });

  test("models", async () => {
    const validator = await open();
    validator.json("GET", "/v1/models", 200, renderModelList(MODELS));
    validator.json("GET", "/v1/models/darkbloom-demo", 200, MODELS.map(renderModel)[0]);
  });

  test("what is wrong is seen", async () => {
    const validator = await open();
    const right = createChatCollector(IDENTITY).finish(terminalOf());
    const wrong = { ...right, choices: right.choices.map(({ logprobs: _removed, ...choice }) => choice) };
    expect(() => validator.json("POST", "/v1/chat/completions", 200, wrong)).toThrow("'logprobs'");
    const [chunk] = sseData(createChatStream(IDENTITY, { includeUsage: false }).chunk([{ type: "text", text: "x" }]));
    expect(() => validator.chunk({ ...(chunk as object), object: "chat.completion" })).toThrow("/object");
    expect(() => validator.error({ error: { message: "m" } })).toThrow("'type'");
    expect(() => validator.request({ model: "m" })).toThrow("'messages'");
  });
};

describe("the document we serve", () => {
  checks(() => Promise.resolve(createResponseValidator(JSON.parse(JSON.stringify(chatOpenApi("0.1.0"))))));
});

describe.skipIf(OPENAI_OPENAPI_FILE === undefined)("OpenAI's published document (OPENAI_OPENAPI_FILE)", () => {
  let opened: Promise<ResponseValidator> | null = null;
  checks(() => (opened ??= openPublishedValidator(OPENAI_OPENAPI_FILE ?? "")));
});
