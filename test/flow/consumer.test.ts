/** Consumers that misbehave: who never reads, who goes away, who sends too much. The row is freed and memory stays bounded. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { connect, type Socket } from "node:net";
import { createFakeEngine, type FakeEngine } from "../../src/engine/fake-engine.ts";
import { defaultPlan, type FakePlan } from "../../src/engine/fake-plan.ts";
import type { GenerateRequest } from "../../src/engine/engine.ts";
import { residentBytes } from "../support/fuzz.ts";
import {
  ENDPOINT_NAMES,
  postChat,
  startBoth,
  startNetwork,
  type BothEndpoints,
  type Endpoint,
} from "../support/network.ts";
import { waitFor } from "../support/wait.ts";

setDefaultTimeout(60_000);

const MIB = 1024 * 1024;
const STEP_MS = 40;

const endless = (text: string, delayBetweenMs = 0): FakePlan => ({
  events: [{ type: "text", text }],
  endless: true,
  delayBetweenMs,
});
/** What the user asks for is how the engine behaves. */
const PLANS: Readonly<Record<string, FakePlan>> = {
  flood: endless("x".repeat(1_000)),
  drip: endless("x ", STEP_MS),
  silent: { events: [], delayFirstMs: 600_000 },
};
const script = (request: GenerateRequest): FakePlan => {
  const last = request.messages.at(-1) as { readonly content?: unknown };
  return PLANS[String(last.content)] ?? defaultPlan(request);
};

let both: BothEndpoints<FakeEngine>;
const unhandled: unknown[] = [];
const note = (thrown: unknown): void => void unhandled.push(thrown);
beforeAll(async () => {
  process.on("unhandledRejection", note);
  both = await startBoth(() => createFakeEngine({ rows: 16, contextTokens: 100_000_000, script }));
});
afterAll(async () => {
  process.off("unhandledRejection", note);
  await both[Symbol.asyncDispose]();
});

const ask = (content: string, stream = true): Record<string, unknown> => ({
  messages: [{ role: "user", content }],
  max_tokens: 10_000_000,
  stream,
});

interface Raw {
  readonly socket: Socket;
  readonly received: () => string;
  readonly bytes: () => number;
  readonly closed: () => boolean;
}

/** A client below HTTP, which reads only when it is told to. */
const openRaw = (endpoint: Endpoint): Raw => {
  const { hostname, port } = new URL(endpoint.url);
  const socket = connect({ host: hostname, port: Number(port) });
  let [text, bytes, closed] = ["", 0, false];
  socket.on("data", (data: Buffer) => {
    bytes += data.length;
    text = (text + data.toString()).slice(-2_000);
  });
  socket.on("close", () => (closed = true));
  socket.on("error", () => undefined); // a server may close before it has read all
  return { socket, received: () => text, bytes: () => bytes, closed: () => closed };
};

const head = (endpoint: Endpoint, ...lines: readonly string[]): string =>
  ["POST /v1/chat/completions HTTP/1.1", "host: x", `authorization: Bearer ${endpoint.key}`, ...lines, "", ""].join(
    "\r\n",
  );

const sendChat = ({ socket }: Raw, endpoint: Endpoint, body: Record<string, unknown>): void => {
  const text = JSON.stringify({ model: endpoint.model, ...body });
  socket.write(head(endpoint, `content-length: ${Buffer.byteLength(text)}`) + text);
};

/** Highest growth of resident memory while something runs. */
const watchMemory = (): (() => number) => {
  const startBytes = residentBytes();
  let most = 0;
  const timer = setInterval(() => {
    most = Math.max(most, process.memoryUsage().rss - startBytes);
  }, 5);
  return () => {
    clearInterval(timer);
    return most;
  };
};

describe.each(ENDPOINT_NAMES.map((name) => [name] as const))("at the %s endpoint", (name) => {
  let endpoint: ReturnType<typeof both.at>;
  beforeAll(() => {
    endpoint = both.at(name);
  });
  const rowsFree = () => waitFor("the row to be freed", () => endpoint.engine.stats().rowsRunning === 0);
  const rowHeld = () => waitFor("the row to be held", () => endpoint.engine.stats().rowsRunning === 1);

  test("who never reads is cancelled, with bounded memory, and is told so when it reads at last", async () => {
    const most = watchMemory();
    const raws = Array.from({ length: 4 }, () => openRaw(endpoint));
    for (const { socket } of raws) socket.pause();
    const before = endpoint.engine.stats().tokensGenerated;
    for (const raw of raws) sendChat(raw, endpoint, ask("flood"));
    await waitFor("the rows to be held", () => endpoint.engine.stats().tokensGenerated > before);
    await rowsFree();
    // A thousand characters a token: four streams in two kernel buffers and one of ours each.
    expect((endpoint.engine.stats().tokensGenerated - before) / 1_000).toBeLessThan(4 * 24);
    expect(most()).toBeLessThan(128 * MIB);
    for (const { socket } of raws) socket.resume();
    for (const raw of raws) {
      await waitFor("the end of the answer", () => raw.received().endsWith("0\r\n\r\n"));
      expect(raw.received()).toContain('data: {"error":{"type":"provider_error"');
      expect(raw.received()).not.toContain("[DONE]");
      raw.socket.destroy();
    }
    expect((await postChat(endpoint, ask("Hi"))).status).toBe(200);
    expect(unhandled).toEqual([]);
  });

  test("who goes away frees the row within a step, streamed and not, speaking or silent", async () => {
    for (const [content, stream] of [
      ["drip", true],
      ["drip", false],
      ["silent", true],
      ["silent", false],
    ] as const) {
      const raw = openRaw(endpoint);
      sendChat(raw, endpoint, ask(content, stream));
      await rowHeld();
      const { tokensGenerated } = endpoint.engine.stats();
      if (content === "drip")
        await waitFor("some tokens", () => endpoint.engine.stats().tokensGenerated > tokensGenerated + 2);
      const left = endpoint.engine.stats().tokensGenerated;
      raw.socket.destroy();
      await rowsFree();
      expect(endpoint.engine.stats().tokensGenerated - left).toBeLessThanOrEqual(1);
    }
  });

  test.each(["content-length", "chunked"])("20 MB are refused with 413 in bounded memory: %s", async (kind) => {
    const piece = Buffer.alloc(MIB, "x");
    const most = watchMemory();
    for (let round = 0; round < 8; round += 1) {
      const raw = openRaw(endpoint);
      raw.socket.write(head(endpoint, kind === "chunked" ? "transfer-encoding: chunked" : "content-length: 20971520"));
      for (let sent = 0; sent < 20 && !raw.closed() && raw.received() === ""; sent += 1) {
        if (kind === "chunked") raw.socket.write(`${piece.length.toString(16)}\r\n`);
        raw.socket.write(piece);
        if (kind === "chunked") raw.socket.write("\r\n");
        await waitFor(
          "the kernel to take it",
          () => raw.socket.writableLength === 0 || raw.received() !== "" || raw.closed(),
        );
      }
      const answer = await waitFor("an answer", () => raw.received() || null);
      expect(answer).toStartWith("HTTP/1.1 413 ");
      await waitFor("its body", () => raw.received().includes("16777216-byte limit"));
      expect(raw.received()).toContain('"type":"invalid_request_error"');
      raw.socket.destroy();
    }
    expect(most()).toBeLessThan(128 * MIB);
    expect((await postChat(endpoint, ask("Hi"))).status).toBe(200);
  });

  test("a body that claims to be enormous is refused before it comes, and a stranger's is not looked at", async () => {
    const claimed = openRaw(endpoint);
    claimed.socket.write(head(endpoint, "content-length: 200000000"));
    await waitFor("413", () => claimed.received().includes("16777216-byte limit"));
    const stranger = openRaw(endpoint);
    stranger.socket.write(head({ ...endpoint, key: "sk-db-nobody" }, "content-length: 200000000"));
    await waitFor("401", () => stranger.received().startsWith("HTTP/1.1 401 "));
    claimed.socket.destroy();
    stranger.socket.destroy();
  });

  test("nothing of all this is left over", async () => {
    await rowsFree();
    expect(endpoint.engine.stats()).toMatchObject({ rowsRunning: 0, requestsWaiting: 0, activeTokens: 0 });
    if (name === "coordinator") expect(both.network.coordinator.health().inflight).toBe(0);
    const broke = endpoint.log.lines.filter((line) => line.includes("broke") || line.includes('"code":"internal"'));
    expect(broke).toEqual([]);
    expect(unhandled).toEqual([]);
  });
});

test("who goes away while waiting for room never reaches a provider", async () => {
  const engine = createFakeEngine({ rows: 1, contextTokens: 100_000_000, script });
  await using network = await startNetwork({ engines: [engine] });
  const [running, waiting] = [openRaw(network), openRaw(network)];
  sendChat(running, network, ask("drip"));
  await waitFor("the row to be held", () => engine.stats().rowsRunning === 1);
  sendChat(waiting, network, ask("Hi"));
  await waitFor("the second to be in", () => network.coordinator.health().inflight === 2);
  waiting.socket.destroy();
  await waitFor("the second to be gone", () => network.coordinator.health().inflight === 1);
  running.socket.destroy();
  await waitFor("all to be gone", () => network.coordinator.health().inflight === 0);
  expect(engine.requests.length).toBe(1);
});
