/** One attempt without sockets: what happens to the plaintext, and to a request that never completes. */
import { expect, test } from "bun:test";
import { createIds, systemRandom } from "../../src/core/ids.ts";
import { REQUEST_PART_BYTES_MAX } from "../../src/core/limits.ts";
import { encodeCanonicalChat } from "../../src/dialects/chat/request.ts";
import { createFakeEngine } from "../../src/engine/fake-engine.ts";
import type { InferenceRequest } from "../../src/provider/jobs/attempt.ts";
import { Jobs } from "../../src/provider/jobs/jobs.ts";
import { Slots } from "../../src/provider/slots.ts";
import { decodeFrame, FRAME_KIND, sealFrame, type Frame, type FrameCipher } from "../../src/protocol/frames.ts";
import type { ProviderMessage } from "../../src/protocol/messages.ts";
import { splitRequest } from "../../src/protocol/payloads.ts";
import { createFakeClock } from "../support/fake-clock.ts";
import { memoryLog } from "../support/memory-log.ts";
import { waitFor } from "../support/wait.ts";

const ids = createIds(systemRandom());

/** Opens to copies that the test keeps. */
const leakyCipher = (opened: Uint8Array[]): FrameCipher => ({
  seal: (_header, plaintext) => Uint8Array.from([...plaintext, ...new Uint8Array(16)]),
  open(_header, sealed) {
    const copy = sealed.slice(0, -16);
    opened.push(copy);
    return copy;
  },
  nextSequence: 0,
});

const openJobs = async () => {
  const clock = createFakeClock();
  const { log } = memoryLog();
  const slots = new Slots({ clock, log, onChange: () => undefined, onEngineEnded: () => undefined });
  const engine = createFakeEngine({ model: { id: "demo" }, contextTokens: 10_000_000 });
  await slots.load("demo", () => Promise.resolve(engine));
  const opened: Uint8Array[] = [];
  const sent: ProviderMessage[] = [];
  const frames: Frame[] = [];
  const jobs = new Jobs({
    clock,
    log,
    slots,
    onChange: () => undefined,
    keys: {
      open: () => Promise.resolve({ request: leakyCipher(opened), response: leakyCipher([]), wipe: () => undefined }),
    },
  });
  const connection = {
    number: 1,
    isOpen: true,
    bufferedBytes: 0,
    sendControl: (message: ProviderMessage) => void sent.push(message),
    sendFrame: (bytes: Uint8Array) => void frames.push(decodeFrame(bytes)),
  };
  return { clock, jobs, connection, opened, sent, frames, engine };
};

const requestFor = (body: Uint8Array, change: Partial<InferenceRequest> = {}): InferenceRequest => ({
  type: "inference_request",
  request_id: ids.uuid(),
  model: "demo",
  enc: "",
  parts: Math.ceil(body.length / REQUEST_PART_BYTES_MAX),
  bytes: body.length,
  max_tokens: 4,
  first_content_budget_ms: 600_000,
  priority: "interactive",
  ...change,
});

const framesOf = (request: InferenceRequest, body: Uint8Array): Frame[] =>
  splitRequest(body).map((part) =>
    decodeFrame(sealFrame(leakyCipher([]), FRAME_KIND.request, request.request_id, part)),
  );

const bodyOf = (content: string): Uint8Array =>
  encodeCanonicalChat({ model: "demo", messages: [{ role: "user", content }], stream: true });

test("the opened request is overwritten once it is parsed, in one part or many", async () => {
  const bench = await openJobs();
  for (const content of ["short", "long ".repeat(500_000)]) {
    const body = bodyOf(content);
    const request = requestFor(body);
    bench.jobs.request(bench.connection, request);
    for (const frame of framesOf(request, body)) bench.jobs.frame(bench.connection, frame);
    await waitFor("the end", () => bench.jobs.running === 0);
  }
  expect(bench.opened.length).toBe(1 + 3);
  for (const bytes of bench.opened) expect(bytes.every((byte) => byte === 0)).toBe(true);
  expect(bench.frames.filter(({ kind }) => kind === FRAME_KIND.terminal).length).toBe(2);
  expect(bench.engine.requests.length).toBe(2);
});

test("a request whose parts never come is given up", async () => {
  const bench = await openJobs();
  bench.jobs.request(bench.connection, requestFor(bodyOf("x")));
  await bench.clock.advance(59_999);
  expect(bench.jobs.running).toBe(1);
  await bench.clock.advance(1);
  expect(bench.jobs.running).toBe(0);
  expect(bench.sent).toMatchObject([{ type: "inference_error", failure_code: "capacity" }]);
});

test("more bytes than declared end the attempt before they are opened", async () => {
  const bench = await openJobs();
  const body = bodyOf("y".repeat(5_000));
  const request = requestFor(body, { bytes: 100 });
  bench.jobs.request(bench.connection, request);
  for (const frame of framesOf(request, body)) bench.jobs.frame(bench.connection, frame);
  expect(bench.sent).toMatchObject([{ type: "inference_error", failure_code: "encryption_failure" }]);
  expect(bench.opened).toEqual([]);
});

test("requests at once and bytes on the way are bounded", async () => {
  const bench = await openJobs();
  const big = requestFor(bodyOf("x"), { bytes: 32 * REQUEST_PART_BYTES_MAX, parts: 32 });
  for (let index = 0; index < 5; index += 1) bench.jobs.request(bench.connection, { ...big, request_id: ids.uuid() });
  expect(bench.jobs.running).toBe(4);
  expect(bench.sent).toMatchObject([{ failure_code: "capacity", reason: "queue_full" }]);
  bench.jobs.dropConnection(bench.connection);
  expect(bench.jobs.running).toBe(0);
  for (let index = 0; index < 600; index += 1) bench.jobs.request(bench.connection, requestFor(bodyOf("x")));
  expect(bench.jobs.running).toBe(512);
});

test("frames for nothing are counted and dropped", async () => {
  const bench = await openJobs();
  const body = bodyOf("x");
  const request = requestFor(body);
  for (const frame of framesOf(request, body)) bench.jobs.frame(bench.connection, frame);
  bench.jobs.request(bench.connection, request);
  for (const frame of framesOf(request, body)) bench.jobs.frame({ ...bench.connection, number: 2 }, frame);
  expect(bench.jobs.counters.framesDropped).toBe(2);
  expect(bench.jobs.running).toBe(1);
});
