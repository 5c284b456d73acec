/** The chat layer on the real library and model: rendering, tool calls as they stream, refusals, and hostile shapes. */
import { beforeAll, describe, expect, test } from "bun:test";
import { type ChatPrompt, type ChatRequest, ChatTemplates } from "../../ffi/chat.ts";
import { Model } from "../../ffi/model.ts";
import { SamplerChain } from "../../ffi/sampler.ts";
import type { Fault } from "../../src/core/fault.ts";
import type { CompletionEvent } from "../../src/core/completion.ts";
import { demoNative, generate, GREEDY, NATIVE_DEADLINE_MS, readEvalCases } from "../support/demo-model.ts";
import { faultOf } from "../support/fault-of.ts";
import { DEMO_MODEL } from "../support/native.ts";

let model: Model;
let chat: ChatTemplates;
beforeAll(async () => {
  model = Model.open(await demoNative(), DEMO_MODEL);
  chat = ChatTemplates.open(model);
}, NATIVE_DEADLINE_MS);

const WEATHER_TOOL = {
  type: "function",
  function: {
    name: "get_weather",
    description: "Get the weather in a city.",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
};
const user = (content: string): unknown => ({ role: "user", content });

/** Text pieces of a greedy answer, as an engine would stream them. */
const answerPieces = (prompt: ChatPrompt): string[] => {
  const tokens = generate(model, model.tokenize(prompt.prompt, { special: true }), {
    sampling: { ...GREEDY, grammar: prompt.grammar },
  });
  const decoder = new TextDecoder();
  return tokens.map((token) =>
    decoder.decode(model.piece(token, { special: prompt.preservedTokens.has(token) }), { stream: true }),
  );
};

const parse = (prompt: ChatPrompt, pieces: readonly string[], newId = () => "call_1"): CompletionEvent[] => {
  using parser = prompt.openParser(newId);
  const events = pieces.flatMap((piece) => parser.push(piece, false));
  return [...events, ...parser.push("", true)];
};

interface Message {
  readonly text: string;
  readonly calls: readonly { readonly id: string; readonly name: string; readonly arguments: string }[];
}

/** What a client puts together from the events; fails on a header that comes late or twice. */
const assemble = (events: readonly CompletionEvent[]): Message => {
  let text = "";
  const calls: { id: string; name: string; arguments: string }[] = [];
  for (const event of events) {
    if (event.type === "text") text += event.text;
    if (event.type !== "tool_call") continue;
    if (event.index === calls.length) calls.push({ id: event.id!, name: event.name!, arguments: "" });
    else expect([event.id, event.name]).toEqual([undefined, undefined]);
    calls[event.index]!.arguments += event.arguments ?? "";
  }
  return { text, calls };
};

const answer = (request: ChatRequest): Message => {
  const prompt = chat.apply(request);
  return assemble(parse(prompt, answerPieces(prompt)));
};

describe("apply", () => {
  test("renders the model's own template", () => {
    const { prompt, grammar } = chat.apply({ messages: [user("Hi")] });
    expect(prompt).toBe("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
    expect(grammar).toBeNull();
    expect(chat.supportsTools).toBe(true);
    const open = chat.apply({ messages: [user("Hi")], addGenerationPrompt: false });
    expect(open.prompt).toBe("<|im_start|>user\nHi<|im_end|>\n");
  });

  test("shows tools, with a sleeping grammar unless no call is wanted", () => {
    const request = { messages: [user("Weather in Paris?")], tools: [WEATHER_TOOL] };
    const auto = chat.apply(request);
    expect(auto.prompt).toContain("get_weather(city)");
    expect(auto.grammar?.lazy).toBe(true);
    expect(auto.grammar?.triggers.length).toBeGreaterThan(0);
    const none = chat.apply({ ...request, toolChoice: "none" });
    expect(none.grammar).toBeNull();
    const call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>';
    expect(assemble(parse(none, [call]))).toEqual({ text: call, calls: [] });
  });

  test("text of several parts, names, unpaired surrogates and control characters pass", () => {
    const parts = [
      { type: "text", text: "one" },
      { type: "text", text: "two" },
    ];
    expect(chat.apply({ messages: [{ role: "user", content: parts }] }).prompt).toContain("one");
    expect(chat.apply({ messages: [user("a\u{d800}b\0c")] }).prompt).toContain("a\u{fffd}b\0c");
  });
});

describe("a tool call as it streams", () => {
  test("header once and first, arguments in pieces, all of it JSON", () => {
    const prompt = chat.apply({ messages: [user("What is the weather in Paris?")], tools: [WEATHER_TOOL] });
    const events = parse(prompt, answerPieces(prompt));
    expect(events.length).toBeGreaterThan(3);
    expect(events[0]).toMatchObject({ type: "tool_call", index: 0, id: "call_1", name: "get_weather" });
    const { text, calls } = assemble(events);
    expect(text).toBe("");
    expect(calls.map((call) => [call.name, JSON.parse(call.arguments)])).toEqual([["get_weather", { city: "Paris" }]]);
  });

  test("every tool case of the model's evaluation, and tool results", async () => {
    const cases = (await readEvalCases()).filter((it) => it.tools.length > 0);
    expect(cases.length).toBeGreaterThan(10);
    for (const it of cases) {
      const { text, calls } = answer({ messages: it.messages, tools: it.tools });
      if (it.check === "tool_call") {
        const found = calls.map((call) => ({ name: call.name, arguments: JSON.parse(call.arguments) as unknown }));
        expect([it.id, found]).toEqual([it.id, [it.expect as (typeof found)[number]]]);
      } else expect([it.id, text]).toEqual([it.id, String(it.expect)]);
    }
  });

  test("text with an unused tool streams as it comes", () => {
    const request = { messages: [user("What is the capital of France?")], tools: [WEATHER_TOOL] };
    const events = parse(chat.apply(request), ["The cap", "ital <of", " France"]);
    expect(assemble(events)).toEqual({ text: "The capital <of France", calls: [] });
    expect(events.length).toBeGreaterThan(1);
  });

  test("a call cut off by the length limit gives what there is of it", () => {
    const prompt = chat.apply({ messages: [user("x")], tools: [WEATHER_TOOL] });
    const { calls } = assemble(parse(prompt, ['<tool_call>\n{"name": "get_weather", "arg', 'uments": {"city": "Pa']));
    expect(calls.map((call) => call.name)).toEqual(["get_weather"]);
    expect(calls[0]?.arguments).toStartWith('{"city": "Pa');
  });

  test("an answer that only looks like a call is text", () => {
    const prompt = chat.apply({ messages: [user("x")], tools: [WEATHER_TOOL] });
    const text = "<tool_call>\nnot JSON at all";
    expect(assemble(parse(prompt, [text])).text).toBe(text);
  });
});

describe("refusals", () => {
  const faultFor = (request: ChatRequest): readonly (string | undefined)[] => {
    const fault = faultOf(() => chat.apply(request));
    expect(fault.message).not.toContain("CANARY");
    return [fault.code, fault.reason];
  };

  test("shapes the chat layer does not take are bad requests", () => {
    const shapes: unknown[][] = [
      ["CANARY"],
      [null],
      [{ content: "CANARY" }],
      [{ role: "user" }],
      [{ role: "user", content: 7 }],
      [{ role: "user", content: [{ type: "image_url", image_url: "CANARY" }] }],
      [{ role: "user", content: [null] }],
      [{ role: 5, content: "CANARY" }],
      [{ role: "assistant", tool_calls: [{ type: "function", function: {} }] }],
      [{ role: "assistant", tool_calls: "CANARY" }],
    ];
    for (const messages of shapes) expect([messages, ...faultFor({ messages })][1]).toBe("bad_request");
    for (const tools of [["CANARY"], [{}], [{ type: "function" }], [{ type: "function", function: { name: 5 } }]])
      expect([tools, ...faultFor({ messages: [user("x")], tools })][1]).toBe("bad_request");
  });

  test("what the template refuses is a template failure that quotes nothing", () => {
    // The template reads tool-call arguments; those of this message are no JSON.
    const call = { type: "function", id: "c", function: { name: "f", arguments: "CANARY {" } };
    const messages = [user("x"), { role: "assistant", content: "", tool_calls: [call] }];
    expect(faultFor({ messages })).toEqual(["template_failed", "jinja_template"]);
    expect(chat.apply({ messages: [user("still works")] }).prompt).toContain("still works");
  });

  test("too deep, too large, too many", () => {
    const nest = (depth: number): unknown => (depth === 0 ? "CANARY" : { properties: { a: nest(depth - 1) } });
    let endless: unknown = [];
    for (let depth = 0; depth < 100_000; depth += 1) endless = [endless];
    const tool = (parameters: unknown): unknown => ({ type: "function", function: { name: "f", parameters } });
    const many = (count: number): unknown =>
      Object.fromEntries(Array.from({ length: count }, (_, index) => [`p${index}`, { type: "string" }]));
    const refused: ChatRequest[] = [
      { messages: [user("x")], tools: [tool(nest(100))] },
      { messages: [user("x")], tools: [tool(endless)] },
      { messages: [endless] },
      { messages: [{ role: "user", content: endless }] },
      { messages: [user("x")], tools: [tool({ description: "x".repeat(300_000) })] },
      { messages: [user("x")], tools: [tool({ type: "object", properties: many(400) })] },
      { messages: [user("x")], tools: Array.from({ length: 100 }, () => tool({ properties: many(40) })) },
      { messages: [user("x")], tools: Array.from({ length: 129 }, () => WEATHER_TOOL) },
      {
        messages: [
          {
            role: "assistant",
            tool_calls: [{ type: "function", function: { name: "f", arguments: "[".repeat(500_000) } }],
          },
        ],
      },
      { messages: [{ role: "tool", content: `${'{"a":'.repeat(500_000)}1` }] },
    ];
    for (const request of refused) expect(faultFor(request)).toEqual(["bad_request", "too_complex"]);
  });

  test("a schema that makes no grammar is a bad request, silently", async () => {
    const tool = {
      type: "function",
      function: {
        name: "f",
        parameters: { type: "object", properties: { CANARY: { type: "array", minItems: 900_000_000, items: {} } } },
      },
    };
    const fault = faultOf(() => {
      const { prompt, grammar } = chat.apply({ messages: [user("x")], tools: [tool] });
      generate(model, model.tokenize(prompt, { special: true }), { sampling: { ...GREEDY, grammar } });
    });
    expect([fault.code, fault.reason]).toEqual(["bad_request", "grammar"]);
    expect(fault.message).not.toContain("CANARY");
  });

  test("hostile schemas within the limits end in a prompt or a bad request", () => {
    const nest = (depth: number, wrap: (inner: unknown) => unknown): unknown =>
      depth === 0 ? { type: "string" } : wrap(nest(depth - 1, wrap));
    const field = (schema: unknown): unknown => ({ type: "object", properties: { a: schema } });
    const pattern = (text: string): unknown => field({ type: "string", pattern: text });
    const schemas: unknown[] = [
      nest(55, (items) => ({ type: "array", items })),
      nest(28, (a) => ({ type: "object", properties: { a }, required: ["a"] })),
      nest(28, (inner) => ({ anyOf: [inner] })),
      field({ $ref: "#" }),
      field({ $ref: "#/nowhere" }),
      field({ $ref: "https://example.com/schema.json" }),
      { $defs: { x: { $ref: "#/$defs/y" }, y: { $ref: "#/$defs/x" } }, ...(field({ $ref: "#/$defs/x" }) as object) },
      pattern(`^${"(".repeat(100_000)}a${")".repeat(100_000)}$`),
      pattern(`^${"(".repeat(20_000)}$`),
      pattern(`^${"|".repeat(20_000)}$`),
      pattern("^(a{1,1000}){1,1000}$"),
      pattern("^a{99999999999999999999}$"),
      pattern("^*$"),
      field({ type: "string", minLength: 1e9 }),
      field({ type: "integer", minimum: 10, maximum: -10 }),
      field({ type: "array", items: 5 }),
      field({ type: [["string"]] }),
      { type: 7 },
      "text",
      [1],
      null,
    ];
    for (const parameters of schemas) {
      const tools = [{ type: "function", function: { name: "f", parameters } }];
      try {
        const { grammar } = chat.apply({ messages: [user("x")], tools });
        SamplerChain.open(model, { ...GREEDY, grammar })[Symbol.dispose]();
      } catch (error) {
        expect((error as Fault).code).toBe("bad_request");
      }
    }
  });
});

describe("lifetime of a parser", () => {
  test("closed once, closed twice, used after", () => {
    for (const tools of [[], [WEATHER_TOOL]]) {
      const parser = chat.apply({ messages: [user("x")], tools }).openParser(() => "id");
      parser.push("a", false);
      parser[Symbol.dispose]();
      parser[Symbol.dispose]();
      expect(faultOf(() => parser.push("b", false)).code).toBe("disposed");
    }
  });

  test("each parser keeps its own answer, and outlives its templates", () => {
    const templates = ChatTemplates.open(model);
    const prompt = templates.apply({ messages: [user("x")], tools: [WEATHER_TOOL] });
    templates[Symbol.dispose]();
    using one = prompt.openParser(() => "1");
    using two = prompt.openParser(() => "2");
    expect(assemble([...one.push("first", false), ...one.push("", true)]).text).toBe("first");
    expect(assemble([...two.push("second", false), ...two.push("", true)]).text).toBe("second");
  });
});
