/** The official openai package, unmodified, against both kinds of server with the real engine: one table, run twice. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import OpenAI, {
  APIError,
  APIUserAbortError,
  AuthenticationError,
  BadRequestError,
  InternalServerError,
  NotFoundError,
} from "openai";
import type { Engine } from "../../src/engine/engine.ts";
import { openDemoEngine } from "../support/demo-engine.ts";
import { NATIVE_DEADLINE_MS } from "../support/demo-model.ts";
import { ENDPOINT_NAMES, startBoth, type BothEndpoints } from "../support/network.ts";
import { rejectionOf } from "../support/rejection.ts";
import { waitFor } from "../support/wait.ts";

setDefaultTimeout(60_000);

const STORY =
  "There once was a clever fox in the cave. The fox was always busy with something. One morning, the fox found a glass mirror under a tree. A goat wanted to have the mirror too. They shared some bread and talked until the sun went down. That night, the fox slept very well.";
const GET_WEATHER = {
  name: "get_weather",
  description: "Get the weather in a city.",
  parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
};
const TOOLS: OpenAI.ChatCompletionTool[] = [{ type: "function", function: GET_WEATHER }];
const WEATHER = '{"temperature": 21, "condition": "sunny"}';

let both: BothEndpoints<Engine>;
beforeAll(async () => {
  both = await startBoth(() => openDemoEngine({ contextTokens: 2048, rows: 2 }));
}, NATIVE_DEADLINE_MS);
afterAll(() => both[Symbol.asyncDispose]());

const userSays = (content: string): OpenAI.ChatCompletionMessageParam[] => [{ role: "user", content }];

describe.each(ENDPOINT_NAMES.map((name) => [name] as const))("the openai package at the %s endpoint", (name) => {
  let client: OpenAI;
  let model: string;
  let engine: Engine;
  beforeAll(() => {
    const endpoint = both.at(name);
    ({ model, engine } = endpoint);
    client = new OpenAI({ apiKey: endpoint.key, baseURL: `${endpoint.url}/v1`, maxRetries: 0 });
  });
  const ask = (content: string, tokens = 200) => ({
    model,
    messages: userSays(content),
    temperature: 0,
    max_tokens: tokens,
  });

  test("models are listed and retrieved", async () => {
    const listed = [];
    for await (const entry of client.models.list()) listed.push(entry);
    expect(listed.map(({ id, object }) => ({ id, object }))).toEqual([{ id: model, object: "model" }]);
    expect(await client.models.retrieve(model)).toEqual(listed[0]!);
  });

  test("a whole answer", async () => {
    const {
      data,
      response,
      request_id: requestId,
    } = await client.chat.completions.create(ask("What is the capital of France?")).withResponse();
    expect(data.choices).toEqual([
      {
        index: 0,
        message: { role: "assistant", content: "The capital of France is Paris.", refusal: null },
        logprobs: null,
        finish_reason: "stop",
      },
    ]);
    expect(data.model).toBe(model);
    expect(data.usage?.total_tokens).toBe((data.usage?.prompt_tokens ?? 0) + (data.usage?.completion_tokens ?? 0));
    expect(data.usage?.prompt_tokens).toBeGreaterThan(5);
    expect(data.id).toBe(`chatcmpl-${response.headers.get("x-inference-job-id")}`);
    expect(requestId).toMatch(/^[0-9a-v]{12}$/);
  });

  test.each([true, false])("a streamed answer, usage asked for: %p", async (includeUsage) => {
    const stream = await client.chat.completions.create({
      ...ask("Tell me a story about a fox."),
      stream: true,
      ...(includeUsage ? { stream_options: { include_usage: true } } : {}),
    });
    let text = "";
    let pieces = 0;
    const finishes: (string | null | undefined)[] = [];
    const usages: OpenAI.CompletionUsage[] = [];
    for await (const chunk of stream) {
      const [choice] = chunk.choices;
      text += choice?.delta.content ?? "";
      if (choice?.delta.content) pieces += 1;
      if (choice?.finish_reason) finishes.push(choice.finish_reason);
      if (chunk.usage) usages.push(chunk.usage);
    }
    expect(text).toBe(STORY);
    // Tokens that a busy machine makes faster than it sends travel together.
    expect(pieces).toBeGreaterThan(3);
    expect(finishes).toEqual(["stop"]);
    expect(usages.length).toBe(includeUsage ? 1 : 0);
  });

  test.each([false, true])("a tool is called and its result is used, streamed: %p", async (streamed) => {
    const complete = async (messages: OpenAI.ChatCompletionMessageParam[]): Promise<OpenAI.ChatCompletion> => {
      const body = { model, messages, tools: TOOLS, temperature: 0, max_tokens: 200 };
      return streamed
        ? client.chat.completions.stream(body).finalChatCompletion()
        : client.chat.completions.create(body);
    };
    const messages = userSays("What is the weather in Paris?");
    const called = (await complete(messages)).choices[0];
    expect(called?.finish_reason).toBe("tool_calls");
    const [call] = called?.message.tool_calls ?? [];
    if (call?.type !== "function") throw new Error("no function was called");
    expect(call.id).toMatch(/^\S+$/);
    expect([call.function.name, JSON.parse(call.function.arguments)]).toEqual(["get_weather", { city: "Paris" }]);
    const result = { role: "tool" as const, tool_call_id: call.id, content: WEATHER };
    const answered = (await complete([...messages, called!.message, result])).choices[0];
    expect([answered?.message.content, answered?.finish_reason]).toEqual([
      "It is sunny and 21 degrees in Paris.",
      "stop",
    ]);
  });

  test("runTools calls the function by itself", async () => {
    const cities: string[] = [];
    const runner = client.chat.completions.runTools({
      ...ask("What is the weather in Paris?"),
      stream: true,
      tools: [
        {
          type: "function",
          function: {
            ...GET_WEATHER,
            parse: (text: string) => JSON.parse(text) as { city: string },
            function: ({ city }: { city: string }) => {
              cities.push(city);
              return WEATHER;
            },
          },
        },
      ],
    });
    expect(await runner.finalContent()).toBe("It is sunny and 21 degrees in Paris.");
    expect(cities).toEqual(["Paris"]);
  });

  test("tool_choice none keeps the tool from being called", async () => {
    const { choices } = await client.chat.completions.create({
      ...ask("What is the capital of France?"),
      tools: TOOLS,
      tool_choice: "none",
    });
    expect([choices[0]?.finish_reason, choices[0]?.message.tool_calls]).toEqual(["stop", undefined]);
  });

  test("an aborted stream frees its row at once, streamed or not", async () => {
    const before = engine.stats().tokensGenerated;
    const endless = { ...ask("Tell me a story about a fox.", 2000), ignore_eos: true };
    // Both rows are held, so that the next request has to wait unless one is freed.
    const streams = await Promise.all([1, 2].map(() => client.chat.completions.create({ ...endless, stream: true })));
    await Promise.all(
      streams.map(async (stream) => {
        for await (const chunk of stream) if (chunk.choices[0]?.delta.content) stream.controller.abort();
      }),
    );
    expect((await client.chat.completions.create(ask("What is 7 + 5?"))).choices[0]?.message.content).toBe(
      "7 + 5 = 12",
    );
    await waitFor("both rows to be free", () => engine.stats().rowsRunning === 0);
    const stop = new AbortController();
    const whole = rejectionOf(client.chat.completions.create(endless, { signal: stop.signal }));
    await waitFor("the row to be held", () => engine.stats().rowsRunning === 1);
    stop.abort();
    expect(await whole).toBeInstanceOf(APIUserAbortError);
    await waitFor("the row to be free", () => engine.stats().rowsRunning === 0);
    // None of the three came anywhere near its 2000 tokens.
    expect(engine.stats().tokensGenerated - before).toBeLessThan(1_000);
    expect(engine.stats().activeTokens).toBe(0);
  });

  test("a stop string, a bound and a seed are honoured", async () => {
    const counted = await client.chat.completions.create({ ...ask("Count to 30."), stop: ["5"] });
    expect(counted.choices[0]).toMatchObject({ finish_reason: "stop", message: { content: "1, 2, 3, 4, " } });
    const cut = await client.chat.completions.create(ask("Count to 30.", 3));
    expect([cut.choices[0]?.finish_reason, cut.usage?.completion_tokens]).toEqual(["length", 3]);
    const seeded = { ...ask("Tell me a story about a fox."), temperature: 1, seed: 7 };
    const textOf = async () => (await client.chat.completions.create(seeded)).choices[0]?.message.content;
    expect(await textOf()).toBe((await textOf()) ?? null);
  });

  test("errors have the package's own classes", async () => {
    const stranger = new OpenAI({ apiKey: "sk-db-wrong", baseURL: client.baseURL, maxRetries: 0 });
    const refused = await rejectionOf(stranger.chat.completions.create(ask("Hi")));
    expect(refused).toBeInstanceOf(AuthenticationError);
    expect(refused).toMatchObject({ status: 401, type: "authentication_error", param: null });

    const unknown = await rejectionOf(client.chat.completions.create({ ...ask("Hi"), model: "no-such-model" }));
    expect(unknown).toBeInstanceOf(NotFoundError);
    expect(unknown).toMatchObject({ status: 404, code: "model_not_found", param: "model" });
    expect(await rejectionOf(client.models.retrieve("no-such-model"))).toBeInstanceOf(NotFoundError);
    expect(await rejectionOf(client.embeddings.create({ model, input: "x" }))).toBeInstanceOf(NotFoundError);

    const bad = await rejectionOf(client.chat.completions.create({ ...ask("Hi"), n: 2 }));
    expect(bad).toBeInstanceOf(BadRequestError);
    expect(bad).toMatchObject({ status: 400, param: "n", type: "invalid_request_error" });
    const hot = await rejectionOf(client.chat.completions.create({ ...ask("Hi"), temperature: 3, stream: true }));
    expect(hot).toBeInstanceOf(BadRequestError);
    expect(hot).toMatchObject({ param: "temperature" });

    const long = await rejectionOf(client.chat.completions.create(ask("word ".repeat(5_000))));
    expect(long).toBeInstanceOf(BadRequestError);
    expect(long).toMatchObject({ code: "request_exceeds_context" });

    const large = await rejectionOf(client.chat.completions.create(ask("x".repeat(17 * 1024 * 1024))));
    expect(large).toBeInstanceOf(APIError);
    expect(large).not.toBeInstanceOf(InternalServerError);
    expect(large).toMatchObject({ status: 413, type: "invalid_request_error" });
    expect((large as Error).message).toContain("16777216-byte limit");
  });
});
