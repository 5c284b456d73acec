/** Rendering of chat completions: the exact bytes, and that a stream and a whole answer say the same. */
import { describe, expect, test } from "bun:test";
import * as fc from "fast-check";
import type { CompletionEvent } from "../../../src/core/completion.ts";
import { Fault } from "../../../src/core/fault.ts";
import {
  createChatCollector,
  createChatStream,
  isVisible,
  renderStreamError,
} from "../../../src/dialects/chat/render.ts";
import {
  chatChunkSchema,
  chatCompletionSchema,
  type ChatChunk,
  type ChatCompletion,
} from "../../../src/dialects/chat/response-schema.ts";
import { sseData, terminalOf } from "../../support/script-stream.ts";

const IDENTITY = { id: "chatcmpl-job1", model: 'say "m"', createdSec: 1_700_000_000 };
const USAGE = {
  prompt_tokens: 7,
  completion_tokens: 5,
  total_tokens: 12,
  prompt_tokens_details: { cached_tokens: 3 },
  completion_tokens_details: { reasoning_tokens: 2 },
};

const whole = (events: readonly CompletionEvent[]): ChatCompletion => {
  const collector = createChatCollector(IDENTITY);
  collector.add(events);
  return chatCompletionSchema.parse(collector.finish(terminalOf()));
};

describe("stream", () => {
  test("the bytes of a short answer", () => {
    const stream = createChatStream(IDENTITY, { includeUsage: true });
    const head = `{"id":"chatcmpl-job1","object":"chat.completion.chunk","created":1700000000,"model":"say \\"m\\""`;
    const tail = `,"logprobs":null,"finish_reason":null}]}\n\n`;
    expect(stream.chunk([{ type: "text", text: 'a"\n' }])).toBe(
      `data: ${head},"choices":[{"index":0,"delta":{"role":"assistant","content":""}${tail}` +
        `data: ${head},"choices":[{"index":0,"delta":{"content":"a\\"\\n"}${tail}`,
    );
    expect(
      stream.chunk([
        { type: "text", text: "b" },
        { type: "text", text: "c" },
      ]),
    ).toBe(`data: ${head},"choices":[{"index":0,"delta":{"content":"bc"}${tail}`);
    expect(stream.finish(terminalOf({ finishReason: "length" }))).toBe(
      `data: ${head},"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"length"}]}\n\n` +
        `data: ${head},"choices":[],"usage":${JSON.stringify(USAGE)}}\n\n` +
        `data: [DONE]\n\n`,
    );
  });

  test("reasoning goes out under both names", () => {
    const [, chunk] = sseData(
      createChatStream(IDENTITY, { includeUsage: false }).chunk([{ type: "reasoning", text: "hm" }]),
    );
    expect((chunk as ChatChunk).choices[0]?.delta).toEqual({ reasoning_content: "hm", reasoning: "hm" });
  });

  test("a tool call in fragments; stop after calls is tool_calls", () => {
    const stream = createChatStream(IDENTITY, { includeUsage: false });
    const body =
      stream.chunk([{ type: "tool_call", index: 0, id: "call_a", name: "f" }]) +
      stream.chunk([
        { type: "tool_call", index: 0, arguments: '{"x"' },
        { type: "tool_call", index: 0, arguments: ":1}" },
      ]) +
      stream.finish(terminalOf());
    const data = sseData(body);
    expect(data.at(-1)).toBe("[DONE]");
    const deltas = data.slice(1, -1).map((chunk) => (chunk as ChatChunk).choices[0]);
    expect(deltas.map((choice) => choice?.delta.tool_calls?.[0])).toEqual([
      { index: 0, id: "call_a", type: "function", function: { name: "f", arguments: "" } },
      { index: 0, function: { arguments: '{"x"' } },
      { index: 0, function: { arguments: ":1}" } },
      undefined,
    ]);
    expect(deltas.at(-1)?.finish_reason).toBe("tool_calls");
  });

  test("no usage chunk unless asked, and an empty answer still has a role, a finish and one [DONE]", () => {
    const data = sseData(createChatStream(IDENTITY, { includeUsage: false }).finish(terminalOf()));
    expect(data).toHaveLength(3);
    expect((data[0] as ChatChunk).choices[0]?.delta.role).toBe("assistant");
    expect((data[1] as ChatChunk).choices[0]?.finish_reason).toBe("stop");
    expect(data[2]).toBe("[DONE]");
    expect(JSON.stringify(data)).not.toContain("usage");
  });

  test("events that hold nothing are no bytes", () => {
    const stream = createChatStream(IDENTITY, { includeUsage: false });
    const nothing: CompletionEvent[] = [
      { type: "text", text: "" },
      { type: "reasoning", text: "" },
      { type: "tool_call", index: 0 },
    ];
    expect(nothing.some(isVisible)).toBe(false);
    expect(stream.chunk(nothing)).toBe("");
  });

  test("an error event: only timeout and provider_error exist, a bug says nothing", () => {
    const [late] = sseData(renderStreamError(new Fault("timeout", "request timed out")));
    expect(late).toEqual({ error: { type: "timeout", message: "request timed out", code: "timeout", param: null } });
    const [bug] = sseData(renderStreamError(new Fault("internal", "internal error", { cause: new Error("secret") })));
    expect(bug).toEqual({
      error: { type: "provider_error", message: "internal error", code: "provider_error", param: null },
    });
  });
});

describe("whole answer", () => {
  test("text", () => {
    expect(
      whole([
        { type: "text", text: "hel" },
        { type: "text", text: "lo" },
      ]),
    ).toEqual({
      id: "chatcmpl-job1",
      object: "chat.completion",
      created: 1_700_000_000,
      model: 'say "m"',
      choices: [
        {
          index: 0,
          message: { role: "assistant", content: "hello", refusal: null },
          logprobs: null,
          finish_reason: "stop",
        },
      ],
      usage: USAGE,
    });
  });

  test("content is null only for calls without text", () => {
    const call: CompletionEvent = { type: "tool_call", index: 0, id: "a", name: "f", arguments: "{}" };
    expect(whole([call]).choices[0]?.message.content).toBeNull();
    expect(whole([{ type: "text", text: "so" }, call]).choices[0]?.message.content).toBe("so");
    expect(whole([]).choices[0]?.message.content).toBe("");
  });

  test("a new id on a used index starts a new call; a call without id gets one", () => {
    const { message } = whole([
      { type: "tool_call", index: 0, id: "a", name: "f", arguments: "1" },
      { type: "tool_call", index: 0, id: "a", arguments: "2" },
      { type: "tool_call", index: 0, id: "b", name: "g", arguments: "3" },
      { type: "tool_call", index: 5, name: "h" },
    ]).choices[0] ?? { message: undefined };
    expect(message?.tool_calls?.map(({ id, function: f }) => [id, f.name, f.arguments])).toEqual([
      ["a", "f", "12"],
      ["b", "g", "3"],
      ["call_job1_2", "h", ""],
    ]);
  });

  test("an endless answer is cut off with a fault", () => {
    const collector = createChatCollector(IDENTITY);
    const piece: CompletionEvent = { type: "text", text: "x".repeat(1024 * 1024) };
    const fill = (): void => {
      for (let count = 0; count < 17; count += 1) collector.add([piece]);
    };
    expect(fill).toThrow("too long to be kept whole");
    const calls = (): void => {
      for (let index = 0; index < 1_025; index += 1) createdCalls.add([{ type: "tool_call", index, id: `c${index}` }]);
    };
    const createdCalls = createChatCollector(IDENTITY);
    expect(calls).toThrow("more than 1024 tool calls");
  });
});

const anyText = fc.string({ unit: "binary", maxLength: 12 });
const anyEvent: fc.Arbitrary<CompletionEvent> = fc.oneof(
  { weight: 4, arbitrary: anyText.map((text): CompletionEvent => ({ type: "text", text })) },
  { weight: 2, arbitrary: anyText.map((text): CompletionEvent => ({ type: "reasoning", text })) },
  fc.record(
    {
      type: fc.constant("tool_call" as const),
      index: fc.nat(2),
      id: fc.constantFrom("", "a", "b"),
      name: anyText,
      arguments: anyText,
    },
    { requiredKeys: ["type", "index"] },
  ),
);

/** What a client makes of the deltas of a stream. */
const assemble = (body: string): ChatCompletion["choices"][number]["message"] => {
  let [content, reasoning] = ["", ""];
  const calls: { id: string; type: "function"; function: { name: string; arguments: string } }[] = [];
  for (const data of sseData(body)) {
    if (data === "[DONE]") continue;
    const delta = chatChunkSchema.parse(data).choices[0]?.delta;
    content += delta?.content ?? "";
    reasoning += delta?.reasoning ?? "";
    for (const { index, id, function: f } of delta?.tool_calls ?? [])
      if (id !== undefined)
        calls[index] = { id, type: "function", function: { name: f.name ?? "", arguments: f.arguments ?? "" } };
      else calls[index]!.function.arguments += f.arguments ?? "";
  }
  return {
    role: "assistant",
    content: content === "" && calls.length > 0 ? null : content,
    refusal: null,
    ...(reasoning === "" ? {} : { reasoning_content: reasoning, reasoning }),
    ...(calls.length === 0 ? {} : { tool_calls: calls }),
  };
};

test("however events are split over chunks, the stream says what the whole answer says", () => {
  fc.assert(
    fc.property(fc.array(fc.array(anyEvent, { maxLength: 6 }), { maxLength: 12 }), (chunks) => {
      const stream = createChatStream(IDENTITY, { includeUsage: false });
      const body = chunks.map((events) => stream.chunk(events)).join("") + stream.finish(terminalOf());
      const answer = whole(chunks.flat());
      expect(assemble(body)).toEqual(answer.choices[0]!.message);
      const reasons = sseData(body).flatMap((data) =>
        data === "[DONE]" ? [] : ((data as ChatChunk).choices[0]!.finish_reason ?? []),
      );
      expect(reasons).toEqual([answer.choices[0]!.finish_reason]);
    }),
    { numRuns: 500 },
  );
});
