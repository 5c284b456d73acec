/** The chat request at the door: what is taken, what is refused, in which order and with which words. */
import { describe, expect, test } from "bun:test";
import {
  decodeCanonicalChat,
  decodeChatRequest,
  encodeCanonicalChat,
  estimatePromptTokens,
  tokensMaxOf,
} from "../../../src/dialects/chat/request.ts";
import { JSON_DEPTH_MAX, JSON_VALUES_MAX } from "../../../src/dialects/json-body.ts";
import { faultOf } from "../../support/fault-of.ts";

const MESSAGES = [{ role: "user", content: "hi" }];
const bytes = (body: string): Uint8Array => new TextEncoder().encode(body);
const decode = (body: unknown) => decodeChatRequest(bytes(typeof body === "string" ? body : JSON.stringify(body)));
const withField = (field: object) => ({ model: "m", messages: MESSAGES, ...field });

const refusal = (body: unknown): readonly [number, string | undefined, string] => {
  const fault = faultOf(() => decode(body));
  return [fault.status, fault.param, fault.message];
};

const TOOL = { type: "function", function: { name: "f", parameters: { type: "object", properties: {} } } };
const CALL = { id: "call_1", type: "function", function: { name: "f", arguments: "{}" } };

describe("what is taken", () => {
  test("a call sent back with empty arguments means an empty object", () => {
    const call = { ...CALL, function: { name: "f", arguments: " " } };
    const { messages } = decode({ model: "m", messages: [{ role: "assistant", content: null, tool_calls: [call] }] });
    expect(messages).toEqual([{ role: "assistant", content: null, tool_calls: [CALL as never] }]);
  });

  test("every role, text as string or parts", () => {
    const { messages } = decode({
      model: "m",
      messages: [
        { role: "developer", content: "rules", name: "ops" },
        { role: "system", content: [{ type: "text", text: "more" }] },
        {
          role: "user",
          content: [
            { type: "text", text: "a" },
            { type: "text", text: "b", extra: 1 },
          ],
        },
        { role: "assistant", content: null, tool_calls: [CALL], reasoning_content: "hm" },
        { role: "tool", tool_call_id: "call_1", content: "42" },
        { role: "assistant", content: [{ type: "refusal", refusal: "no" }] },
        { role: "assistant", refusal: "never" },
        { role: "assistant", content: "" },
      ],
    });
    expect(messages).toEqual([
      { role: "system", content: "rules", name: "ops" },
      { role: "system", content: [{ type: "text", text: "more" }] },
      {
        role: "user",
        content: [
          { type: "text", text: "a" },
          { type: "text", text: "b" },
        ],
      },
      { role: "assistant", content: null, tool_calls: [CALL as never], reasoning_content: "hm" },
      { role: "tool", tool_call_id: "call_1", content: "42" },
      { role: "assistant", content: [{ type: "text", text: "no" }] },
      { role: "assistant", content: "never" },
      { role: "assistant", content: "" },
    ]);
  });

  test("sampling and bounds, nulls as if absent, one stop as a list", () => {
    const full = {
      temperature: 0.5,
      top_p: 0.9,
      top_k: 40,
      min_p: 0.05,
      seed: -7,
      ignore_eos: true,
      max_tokens: 10,
      tool_choice: "none",
      stream_options: { include_usage: true },
    };
    expect(decode(withField({ ...full, stop: "END", stream: true }))).toEqual({
      model: "m",
      messages: MESSAGES as never,
      stream: true,
      stop: ["END"],
      ...(full as object),
    });
    const nulls = Object.fromEntries(
      [...Object.keys(full), "stop", "tools", "n", "logit_bias"].map((key) => [key, null]),
    );
    expect(decode(withField(nulls))).toEqual({ model: "m", messages: MESSAGES as never, stream: false });
  });

  test("harmless fields are ignored and do not travel", () => {
    const ignored = {
      user: "u",
      metadata: { a: 1 },
      store: true,
      service_tier: "auto",
      reasoning_effort: "low",
      x: [1],
    };
    const neutral = { n: 1, logprobs: false, top_logprobs: 0, frequency_penalty: 0, logit_bias: {}, functions: [] };
    const text = { response_format: { type: "text" }, modalities: ["text"] };
    expect(decode(withField({ ...ignored, ...neutral, ...text, parallel_tool_calls: false }))).toEqual(
      decode(withField({})),
    );
  });

  test("tools, with the empty parameter list filled in", () => {
    const bare = { type: "function", function: { name: "g", description: "d", parameters: null, strict: true } };
    expect(decode(withField({ tools: [TOOL, bare], tool_choice: "auto" })).tools).toEqual([
      TOOL as never,
      {
        type: "function",
        function: { name: "g", description: "d", strict: true, parameters: { type: "object", properties: {} } },
      },
    ]);
    expect(decode(withField({ tools: [] })).tools).toBeUndefined();
  });

  test("token bounds: the newer name wins, 0 means none, values are never clamped", () => {
    expect(tokensMaxOf(decode(withField({ max_tokens: 5, max_completion_tokens: 9 })))).toBe(9);
    expect(tokensMaxOf(decode(withField({ max_tokens: 5 })))).toBe(5);
    expect(tokensMaxOf(decode(withField({ max_tokens: 5, max_completion_tokens: 0 })))).toBe(5);
    expect(tokensMaxOf(decode(withField({ max_tokens: 0 })))).toBeUndefined();
    expect(tokensMaxOf(decode(withField({ max_tokens: 1_000_000_000 })))).toBe(1_000_000_000);
  });

  test("a repeated key: the last wins", () => {
    expect(decode('{"model":"a","model":"b","messages":[{"role":"user","content":"hi"}]}').model).toBe("b");
  });
});

describe("what is refused", () => {
  const cases: readonly (readonly [string, unknown, string | undefined, string])[] = [
    ["an empty body", "", undefined, "invalid JSON: the body is empty"],
    ["broken JSON", '{"model":', undefined, "invalid JSON: not one well-formed JSON value"],
    [
      "a trailing second value",
      `${JSON.stringify(withField({}))} {}`,
      undefined,
      "invalid JSON: not one well-formed JSON value",
    ],
    ["NaN", '{"model":"m","messages":[],"temperature":NaN}', undefined, "invalid JSON: not one well-formed JSON value"],
    ["an array", "[]", undefined, "invalid JSON: not an object"],
    ["null", "null", undefined, "invalid JSON: not an object"],
    ["no model", { messages: MESSAGES }, "model", "model is required"],
    ["an empty model", { model: "", messages: MESSAGES }, "model", "model is required"],
    ["a model that is no text", { model: 7, messages: MESSAGES }, "model", "model must be a string"],
    ["no messages", { model: "m" }, "messages", "messages or input is required"],
    ["empty messages", { model: "m", messages: [] }, "messages", "messages or input is required"],
    ["messages as text", { model: "m", messages: "hi" }, "messages", "messages must be an array"],
    ["n = 2", withField({ n: 2 }), "n", "n > 1 is not supported"],
    ["n = 0", withField({ n: 0 }), "n", "n must be 1"],
    ["a negative bound", withField({ max_tokens: -1 }), "max_tokens", "max_tokens must be a non-negative integer"],
    [
      "a fractional bound",
      withField({ max_completion_tokens: 1.5 }),
      "max_completion_tokens",
      "max_completion_tokens must be a non-negative integer",
    ],
    ["a bound as text", withField({ max_tokens: "9" }), "max_tokens", "max_tokens must be a non-negative integer"],
    [
      "a bound without bound",
      withField({ max_tokens: 1e300 }),
      "max_tokens",
      "max_tokens must be a non-negative integer",
    ],
    ["heat", withField({ temperature: 2.1 }), "temperature", "temperature must be at most 2"],
    ["a seed with a fraction", withField({ seed: 1.5 }), "seed", "seed must be an integer"],
    ["stream as text", withField({ stream: "true" }), "stream", "stream must be a boolean"],
    ["an empty stop", withField({ stop: ["a", ""] }), "stop[1]", "stop[1] must not be empty"],
    ["17 stops", withField({ stop: Array.from({ length: 17 }, () => "a") }), "stop", "stop must have at most 16 items"],
    ["stop as a number", withField({ stop: 1 }), "stop", "stop must be a string or an array of strings"],
    ["logprobs", withField({ logprobs: true }), "logprobs", "logprobs is not supported: leave it out or send false"],
    [
      "a penalty",
      withField({ presence_penalty: 0.1 }),
      "presence_penalty",
      "presence_penalty is not supported: leave it out or send 0",
    ],
    [
      "logit_bias",
      withField({ logit_bias: { "50256": -100 } }),
      "logit_bias",
      "logit_bias is not supported: leave it out or send {}",
    ],
    [
      "a forced tool",
      withField({ tools: [TOOL], tool_choice: "required" }),
      "tool_choice",
      'tool_choice must be "auto" or "none": forcing a tool call is not supported',
    ],
    [
      "a named tool",
      withField({ tools: [TOOL], tool_choice: { type: "function", function: { name: "f" } } }),
      "tool_choice",
      'tool_choice must be "auto" or "none": forcing a tool call is not supported',
    ],
    [
      "a custom tool",
      withField({ tools: [{ type: "custom" }] }),
      "tools[0].type",
      'tools[0].type must be "function": other tools are not supported',
    ],
    [
      "two tools of one name",
      withField({ tools: [TOOL, TOOL] }),
      "tools[1].function.name",
      "tools[1].function.name is used twice",
    ],
    [
      "129 tools",
      withField({ tools: Array.from({ length: 129 }, () => TOOL) }),
      "tools",
      "tools must have at most 128 items",
    ],
    [
      "JSON output",
      withField({ response_format: { type: "json_object" } }),
      "response_format.type",
      'response_format.type must be "text": structured output is not supported',
    ],
    ["functions", withField({ functions: [{ name: "f" }] }), "functions", "functions is not supported: use tools"],
    ["audio", withField({ modalities: ["text", "audio"] }), "modalities[1]", 'modalities[1] must be "text"'],
    ["web search", withField({ web_search_options: {} }), "web_search_options", "web_search_options is not supported"],
    [
      "an unknown role",
      { model: "m", messages: [{ role: "bot", content: "x" }] },
      "messages[0].role",
      'messages[0].role must be one of "system", "developer", "user", "assistant", "tool"',
    ],
    [
      "no content",
      { model: "m", messages: [{ role: "user" }] },
      "messages[0].content",
      "messages[0].content must be a string or an array of text parts",
    ],
    [
      "an assistant without anything",
      { model: "m", messages: [{ role: "assistant", content: null, tool_calls: [] }] },
      "messages[0].content",
      "messages[0].content is required when there are no tool_calls",
    ],
    [
      "a tool answer to nothing",
      { model: "m", messages: [{ role: "tool", content: "x" }] },
      "messages[0].tool_call_id",
      "messages[0].tool_call_id is required",
    ],
    ["null for a message", { model: "m", messages: [null] }, "messages[0]", "messages[0] must be an object"],
  ];
  test.each(cases)("%s", (_name, body, param, message) => {
    expect(refusal(body)).toEqual([400, param, message]);
  });

  test.each(["image_url", "input_image", "input_audio", "file", "video_url"])(
    "a %s part: 415 that names it",
    (type) => {
      const content = [
        { type: "text", text: "look" },
        { type, [type]: { url: "data:image/png;base64,AAAA" } },
      ];
      const [status, param] = refusal({ model: "m", messages: [...MESSAGES, { role: "user", content }] });
      expect([status, param]).toEqual([415, "messages[1].content[1]"]);
    },
  );

  test("order: JSON, model, messages, n, the rest", () => {
    const wrong = { max_tokens: -1, n: 2, messages: [], model: "" };
    expect(refusal(`${JSON.stringify(wrong)}x`)[2]).toStartWith("invalid JSON");
    expect(refusal(wrong)[1]).toBe("model");
    expect(refusal({ ...wrong, model: "m" })[1]).toBe("messages");
    expect(refusal({ ...wrong, model: "m", messages: MESSAGES })[1]).toBe("n");
    expect(refusal({ ...wrong, model: "m", messages: MESSAGES, n: 1 })[1]).toBe("max_tokens");
  });

  test("no message quotes the body", () => {
    const canary = "CANARY-7f3a";
    const bodies: readonly unknown[] = [
      `{"model":"m","messages":[{"role":"user","content":"${canary}"}`,
      `{"${canary}"`,
      { model: "m", messages: [{ role: canary, content: canary }] },
      { model: "m", messages: [{ role: "user", content: [{ type: canary, [canary]: canary }] }] },
      withField({ temperature: canary }),
      withField({ tool_choice: canary }),
      withField({ stop: [canary.repeat(200)] }),
      withField({ tools: [{ type: "function", function: { name: `${canary} ${canary}`, parameters: canary } }] }),
      withField({ logit_bias: { [canary]: 1 } }),
      withField({ response_format: { type: canary } }),
      withField({ stream_options: canary }),
    ];
    for (const body of bodies) {
      const fault = faultOf(() => decode(body));
      expect(`${fault.message} ${fault.param} ${fault.reason} ${String(fault.cause)}`).not.toContain(canary);
    }
  });
});

describe("hostile bodies", () => {
  test("invalid UTF-8", () => {
    const body = bytes(JSON.stringify(withField({})));
    body[body.length - 3] = 0xff;
    expect(faultOf(() => decodeChatRequest(body)).message).toBe("invalid JSON: the body is not UTF-8");
  });

  test.each(["[", '{"a":', '{"model":"m","messages":[{"role":"user","content":['])("10,000 levels of %s", (opening) => {
    const message = `invalid JSON: nested deeper than ${JSON_DEPTH_MAX} levels`;
    expect(refusal(opening.repeat(10_000))[2]).toBe(message);
  });

  test.each(["{},", "1,", '"",', "[],"])("16 MiB of %s is refused before it is parsed", (unit) => {
    const list = unit.repeat(Math.floor((16 * 1024 * 1024) / unit.length) - 20);
    const startedMs = performance.now();
    expect(refusal(`{"model":"m","messages":[${list}1]}`)[2]).toBe(`invalid JSON: more than ${JSON_VALUES_MAX} values`);
    expect(performance.now() - startedMs).toBeLessThan(2_000);
  });

  test("16 MiB in one message, of plain text and of escapes, is taken", () => {
    for (const unit of ["x", '\\"', "\\\\", "\\u00e9", "é"]) {
      const content = unit.repeat(Math.floor((16 * 1024 * 1024 - 200) / Buffer.byteLength(unit)));
      const { messages } = decode(`{"model":"m","messages":[{"role":"user","content":"${content}"}]}`);
      expect(messages[0]?.content?.length).toBeGreaterThan(1_000_000);
    }
  });

  test("many wrong items cost bounded time", () => {
    const many = (unit: string, count: number) => Array.from({ length: count }, () => unit).join(",");
    const bodies = [
      `{"model":"m","messages":[${many("{}", 8_192)}]}`,
      `{"model":"m","messages":[${many("{}", 8_193)}]}`,
      `{"model":"m","messages":[{"role":"user","content":[${many("{}", 16_384)}]}]}`,
      `{"model":"m","messages":[{"role":"user","content":[${many("{}", 16_385)}]}]}`,
      `{"model":"m","messages":[{"role":"user","content":"x"}],"functions":[${many("1", 200_000)}]}`,
      `{"model":"m","messages":[{"role":"user","content":"x"}],"stop":[${many('""', 200_000)}]}`,
    ];
    for (const body of bodies) {
      const startedMs = performance.now();
      expect(refusal(body)[0]).toBe(400);
      expect(performance.now() - startedMs).toBeLessThan(2_000);
    }
  });

  test("numbers beyond a double", () => {
    expect(refusal('{"model":"m","messages":[{"role":"user","content":"x"}],"temperature":1e400}')[1]).toBe(
      "temperature",
    );
    expect(refusal('{"model":"m","messages":[{"role":"user","content":"x"}],"seed":1e40}')[1]).toBe("seed");
    const tool = '[{"type":"function","function":{"name":"f","parameters":{"maximum":1e400}}}]';
    expect(refusal(`{"model":"m","messages":[{"role":"user","content":"x"}],"tools":${tool}}`)[1]).toBe(
      "tools[0].function.parameters",
    );
    expect(decode('{"model":"m","messages":[{"role":"user","content":"x"}],"seed":9223372036854775807}').seed).toBe(
      2 ** 63,
    );
  });

  test("tool schemas: depth and size", () => {
    const nest = (levels: number): object => (levels === 1 ? {} : { a: nest(levels - 1) });
    const withSchema = (parameters: object) =>
      withField({ tools: [{ type: "function", function: { name: "f", parameters } }] });
    expect(decode(withSchema(nest(64))).tools).toHaveLength(1);
    expect(refusal(withSchema(nest(65)))[2]).toBe("tools[0].function.parameters is nested deeper than 64 levels");
    expect(decode(withSchema({ d: "x".repeat(256 * 1024 - 8) })).tools).toHaveLength(1);
    expect(refusal(withSchema({ d: "x".repeat(256 * 1024 - 7) }))[2]).toBe(
      "tools[0].function.parameters is larger than 262144 bytes",
    );
  });

  test("a lone surrogate becomes U+FFFD in text and is refused in a schema", () => {
    const body = String.raw`{"model":"m\udc00","messages":[{"role":"user","content":"a\ud800b"}],"stop":"\ud800"}`;
    const request = decode(body);
    expect([request.model, request.messages[0]?.content, request.stop]).toEqual(["m�", "a�b", ["�"]]);
    const tool = String.raw`[{"type":"function","function":{"name":"f","parameters":{"\ud800":1}}}]`;
    expect(refusal(`{"model":"m","messages":[{"role":"user","content":"x"}],"tools":${tool}}`)[2]).toContain(
      "not Unicode",
    );
  });

  test("prototype keys change nothing", () => {
    const body =
      '{"model":"m","messages":[{"role":"user","content":"x","__proto__":{"role":"system"}}],"__proto__":{"stream":true},"constructor":{"prototype":{"y":1}},' +
      '"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{"__proto__":{"type":"string"}}}}}]}';
    const request = decode(body);
    expect(request.stream).toBe(false);
    expect(request.messages).toEqual([{ role: "user", content: "x" }]);
    expect(({} as Record<string, unknown>)["y"]).toBeUndefined();
    expect(new TextDecoder().decode(encodeCanonicalChat(request))).toContain(
      '"properties":{"__proto__":{"type":"string"}}',
    );
    expect(refusal('{"__proto__":{"model":"m","messages":[{"role":"user","content":"x"}]}}')[2]).toBe(
      "model is required",
    );
  });
});

describe("the canonical form", () => {
  test("comes back the same", () => {
    const request = decode(
      withField({ tools: [TOOL], stop: ["a", "b"], seed: 3, max_completion_tokens: 4, stream: true, min_p: 0.1 }),
    );
    expect(decodeCanonicalChat(encodeCanonicalChat(request))).toEqual(request);
  });

  test("any fault there says one and the same", () => {
    const bodies = ["", "{}", JSON.stringify(withField({ n: 2 })), JSON.stringify(withField({ temperature: 9 }))];
    const messages = bodies.map((body) => faultOf(() => decodeCanonicalChat(bytes(body))));
    expect(messages.map(({ code, message, param }) => [code, message, param])).toEqual(
      bodies.map(() => ["bad_request", "the request is not a valid chat request", undefined]),
    );
  });
});

test("the prompt estimate follows the published vectors", () => {
  const estimate = (messages: unknown): number => estimatePromptTokens(decode({ model: "m", messages }));
  expect(estimate([{ role: "user", content: "hello world!" }])).toBe(7);
  expect(estimate([{ role: "user", content: "hi" }])).toBe(5);
  expect(estimate([{ role: "user", content: [{ type: "text", text: "x".repeat(40) }] }])).toBe(14);
  expect(estimate([{ role: "user", content: "" }])).toBe(4);
  expect(estimatePromptTokens(decode(withField({ tools: [TOOL] })))).toBeGreaterThan(5);
});
