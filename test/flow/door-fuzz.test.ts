/** Mutated requests over real sockets against both kinds of server with a provider behind: never a 5xx, never a hang, nothing left over. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { connect } from "node:net";
import { createFakeEngine, type FakeEngine } from "../../src/engine/fake-engine.ts";
import {
  createDice,
  flipBit,
  fuzzSeed,
  mutateText,
  MUTATIONS,
  residentBytes,
  Tally,
  truncateBytes,
  type Dice,
  type Mutation,
} from "../support/fuzz.ts";
import { ENDPOINT_NAMES, request, startBoth, type BothEndpoints, type Endpoint } from "../support/network.ts";
import { createResponseValidator, type ResponseValidator } from "../support/openapi-validate.ts";
import { sseData } from "../support/script-stream.ts";
import { waitFor } from "../support/wait.ts";

setDefaultTimeout(90_000);

const ROUNDS = 2_000;
const WARM_UP = 300;
const HEADS = 600;
const LANES = 8;
const GROWTH_BYTES_MAX = 96 * 1024 * 1024;
const CHAT = "/v1/chat/completions";

let both: BothEndpoints<FakeEngine>;
const unhandled: unknown[] = [];
const note = (thrown: unknown): void => void unhandled.push(thrown);
beforeAll(async () => {
  process.on("unhandledRejection", note);
  both = await startBoth(() => createFakeEngine({ rows: LANES, contextTokens: 100_000 }));
});
afterAll(async () => {
  process.off("unhandledRejection", note);
  await both[Symbol.asyncDispose]();
});

const weather = {
  type: "function",
  function: {
    name: "get_weather",
    description: "weather in a city",
    parameters: { type: "object", properties: { city: { type: "string", enum: ["Ulm", "Oslo"] } }, required: ["city"] },
  },
};
const call = { id: "c1", type: "function", function: { name: "get_weather", arguments: '{"city":"Ulm"}' } };
const bodiesFor = (model: string): readonly string[] =>
  [
    { model, messages: [{ role: "user", content: "Hi" }] },
    {
      model,
      stream: true,
      stream_options: { include_usage: true },
      messages: [{ role: "user", content: "größer 東京" }],
    },
    {
      model,
      messages: [
        { role: "system", content: "be brief" },
        {
          role: "user",
          content: [
            { type: "text", text: "one" },
            { type: "text", text: "two" },
          ],
        },
        { role: "assistant", content: null, tool_calls: [call] },
        { role: "tool", tool_call_id: "c1", content: "21" },
      ],
      tools: [weather],
      tool_choice: "auto",
    },
    {
      model,
      messages: [{ role: "user", content: "all of them" }],
      temperature: 0.5,
      top_p: 0.9,
      top_k: 40,
      min_p: 0.05,
      seed: 7,
      stop: ["a", "b"],
      max_tokens: 5,
      max_completion_tokens: 6,
      n: 1,
      user: "me",
      stream: true,
      response_format: { type: "text" },
      logprobs: false,
      metadata: { a: "b" },
    },
    // White space at the end, so that not everything cut off is broken.
  ].map((body) => JSON.stringify(body) + " ".repeat(60));

/** Bytes stay bytes where the mutation is one of bytes: what is no UTF-8 must arrive as such. */
const mutate = (dice: Dice, kind: Mutation, bodies: readonly string[]): Uint8Array => {
  const text = dice.pick(bodies);
  const bytes = new TextEncoder().encode(text);
  if (kind === "flip") return flipBit(dice, bytes);
  if (kind === "truncate") return truncateBytes(dice, bytes);
  return new TextEncoder().encode(mutateText(dice, kind, text, dice.pick(bodies)));
};

/** Sends one body and judges the answer; its status tells which class of outcome it was. */
const send = async (endpoint: Endpoint, validator: ResponseValidator, body: Uint8Array): Promise<string> => {
  const response = await request(endpoint, CHAT, { method: "POST", body });
  const { status } = response;
  if (status !== 200 && (status < 400 || status > 499)) return `status ${status}`;
  const text = await response.text();
  if (response.headers.get("content-type")?.startsWith("text/event-stream")) {
    const events = sseData(text);
    if (events.at(-1) !== "[DONE]") return "a stream without its end";
    for (const event of events.slice(0, -1)) validator.chunk(event);
  } else validator.json("POST", CHAT, status, JSON.parse(text));
  return status === 200 ? "accepted" : "rejected";
};

const checkIdle = async (name: (typeof ENDPOINT_NAMES)[number]): Promise<void> => {
  const { engine, log } = both.at(name);
  await waitFor("every row to be free", () => engine.stats().rowsRunning + engine.stats().requestsWaiting === 0);
  expect(log.lines.filter((line) => line.includes('"internal"') || line.includes("assertion failed"))).toEqual([]);
  expect(unhandled).toEqual([]);
};

test.each(ENDPOINT_NAMES)("mutated bodies: %s", async (name) => {
  const endpoint = both.at(name);
  const validator = createResponseValidator(await (await request(endpoint, "/openapi.json")).json());
  const bodies = bodiesFor(endpoint.model);
  for (const body of bodies) expect(await send(endpoint, validator, new TextEncoder().encode(body))).toBe("accepted");
  const seed = fuzzSeed();
  const dice = createDice(seed);
  const tally = new Tally();
  let warmBytes = 0;
  let round = 0;
  const lane = async (): Promise<void> => {
    while (round < ROUNDS) {
      round += 1;
      if (round === WARM_UP) warmBytes = residentBytes();
      const kind = MUTATIONS[round % MUTATIONS.length]!;
      tally.add(kind, await send(endpoint, validator, mutate(dice, kind, bodies)));
    }
  };
  await Promise.all(Array.from({ length: LANES }, lane));
  tally.print(`requests at the ${name} endpoint`, seed);
  expect(tally.total("accepted") + tally.total("rejected")).toBe(ROUNDS);
  for (const kind of MUTATIONS)
    for (const outcome of ["accepted", "rejected"])
      expect([kind, outcome, tally.count(kind, outcome) > 0]).toEqual([kind, outcome, true]);
  expect(residentBytes() - warmBytes).toBeLessThan(GROWTH_BYTES_MAX);
  await checkIdle(name);
});

/** Longest that bytes which are no whole request are left alone before the client hangs up. */
const PATIENCE_MS = 100;

/** The first line of the answer, or "hung up" when the server waited for more in vain or had enough. */
const sendRaw = async (endpoint: Endpoint, bytes: Uint8Array): Promise<string> => {
  const { hostname, port } = new URL(endpoint.url);
  const { promise, resolve } = Promise.withResolvers<string>();
  const socket = connect({ host: hostname, port: Number(port) });
  let text = "";
  socket.on("data", (data: Buffer) => {
    text += data.toString();
    if (text.includes("\r\n")) resolve(text.slice(0, text.indexOf("\r\n")));
  });
  socket.on("error", () => resolve("hung up"));
  socket.on("close", () => resolve("hung up"));
  socket.write(bytes);
  const timer = setTimeout(() => socket.end(), PATIENCE_MS);
  const line = await promise;
  clearTimeout(timer);
  socket.destroy();
  return line;
};

/** 505 is what the server's own parser says to a version it does not speak. */
const outcomeOf = (line: string): string => {
  const status = Number(/^HTTP\/1\.1 (\d{3})/.exec(line)?.[1] ?? 0);
  if (status === 0) return "hung up";
  if (status >= 200 && status < 300) return "accepted";
  return (status >= 400 && status < 500) || status === 505 ? "rejected" : line;
};

const HEAD_MUTATIONS = ["flip", "truncate", "splice"] as const;
const mutateHead = (dice: Dice, kind: (typeof HEAD_MUTATIONS)[number], samples: readonly Uint8Array[]): Uint8Array => {
  const sample = dice.pick(samples);
  if (kind === "flip") return flipBit(dice, sample);
  if (kind === "truncate") return truncateBytes(dice, sample);
  return Buffer.concat([sample.subarray(0, dice.below(sample.length)), dice.pick(samples)]);
};

test.each(ENDPOINT_NAMES)("a Host header that makes no URL is the sender's mistake: %s", async (name) => {
  const line = await sendRaw(both.at(name), new TextEncoder().encode("GET /health HTTP/1.1\r\nhost: x y:z\r\n\r\n"));
  expect(line).toBe("HTTP/1.1 400 Bad Request");
});

test.each(ENDPOINT_NAMES)("mutated heads: %s", async (name) => {
  const endpoint = both.at(name);
  const body = bodiesFor(endpoint.model)[0]!;
  const head = (path: string, ...lines: readonly string[]): string =>
    [
      `${lines.length > 1 ? "POST" : "GET"} ${path} HTTP/1.1`,
      "host: x",
      `authorization: Bearer ${endpoint.key}`,
      ...lines,
      "",
      "",
    ].join("\r\n");
  const samples = [
    head(CHAT, `content-length: ${body.length}`, "content-type: application/json") + body,
    head(CHAT, "transfer-encoding: chunked", "accept: */*") + `${body.length.toString(16)}\r\n${body}\r\n0\r\n\r\n`,
    head("/v1/models"),
    head("/v1/models/%66ake?x=1", "x-request-id: me"),
    head("/ws/provider", "upgrade: websocket", "connection: upgrade", "sec-websocket-protocol: darkbloom.v1"),
  ].map((text) => new TextEncoder().encode(text));
  const seed = fuzzSeed();
  const dice = createDice(seed);
  const tally = new Tally();
  let round = 0;
  const lane = async (): Promise<void> => {
    while (round < HEADS) {
      const kind = HEAD_MUTATIONS[round % HEAD_MUTATIONS.length]!;
      round += 1;
      tally.add(kind, outcomeOf(await sendRaw(endpoint, mutateHead(dice, kind, samples))));
    }
  };
  await Promise.all(Array.from({ length: LANES }, lane));
  tally.print(`heads at the ${name} endpoint`, seed);
  expect(tally.total("accepted") + tally.total("rejected") + tally.total("hung up")).toBe(HEADS);
  for (const outcome of ["accepted", "rejected"]) expect([outcome, tally.total(outcome) > 0]).toEqual([outcome, true]);
  expect((await request(endpoint, "/v1/models")).status).toBe(200);
  await checkIdle(name);
});
