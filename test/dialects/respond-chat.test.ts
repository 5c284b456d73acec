/** The deferred commit: what is decided before the first byte, what may happen after it, and that every end is told once. */
import { describe, expect, test } from "bun:test";
import { Fault } from "../../src/core/fault.ts";
import { HELD_CHUNKS_MAX } from "../../src/core/limits.ts";
import { decodeChatRequest } from "../../src/dialects/chat/request.ts";
import { Outputs } from "../../src/dialects/outputs.ts";
import { respondChat, type RespondEnd, type RespondOptions } from "../../src/dialects/respond-chat.ts";
import { createFakeClock } from "../support/fake-clock.ts";
import {
  ACCEPTED,
  events,
  script,
  type ScriptLine,
  silence,
  sseData,
  terminal,
  terminalOf,
  text,
} from "../support/script-stream.ts";

const setUp = (lines: Iterable<ScriptLine>, fields: object = {}, overrides: Partial<RespondOptions> = {}) => {
  const clock = createFakeClock();
  const outputs = script(lines);
  const ends: RespondEnd[] = [];
  const consumer = new AbortController();
  const body = { model: "m", messages: [{ role: "user", content: "hi" }], stream: true, ...fields };
  let commits = 0;
  const respond = () =>
    respondChat({
      clock,
      request: decodeChatRequest(new TextEncoder().encode(JSON.stringify(body))),
      jobId: "job1",
      outputs,
      keepAliveMs: 0,
      headers: () => ({ "x-inference-job-id": "job1", "x-commits": String((commits += 1)) }),
      signal: consumer.signal,
      onEnd: (end) => ends.push(end),
      ...overrides,
    });
  return { clock, outputs, ends, consumer, respond };
};

const thrownBy = async (action: Promise<unknown>): Promise<unknown> => {
  try {
    await action;
  } catch (thrown) {
    return thrown;
  }
  throw new Error("nothing was thrown");
};

/** Lets everything that is ready run. */
const settle = async (): Promise<void> => {
  for (let round = 0; round < 50; round += 1) await Promise.resolve();
};

describe("stream", () => {
  test("an answer: status, headers, chunks, usage, one [DONE], one end", async () => {
    const { respond, ends, outputs } = setUp([ACCEPTED, text("a"), text("b"), terminal()], {
      stream_options: { include_usage: true },
    });
    const response = await respond();
    expect([response.status, response.headers.get("content-type")]).toEqual([200, "text/event-stream; charset=utf-8"]);
    expect(response.headers.get("x-inference-job-id")).toBe("job1");
    const data = sseData(await response.text());
    expect(data.map((chunk) => (chunk === "[DONE]" ? chunk : Object.keys(chunk as object).at(-1)))).toEqual([
      ...Array.from({ length: 4 }, () => "choices"),
      "usage",
      "[DONE]",
    ]);
    expect(data[0]).toMatchObject({ id: "chatcmpl-job1", model: "m", created: 1_700_000_000 });
    expect(ends).toEqual([{ fault: null, terminal: terminalOf() }]);
    expect(outputs.returns).toBe(1);
  });

  test("nothing is committed before content: neither accepted nor empty events call for headers", async () => {
    const content = Promise.withResolvers<void>();
    const { respond } = setUp([ACCEPTED, events({ type: "text", text: "" }), content.promise, text("x"), terminal()]);
    let committed = false;
    const response = respond().then((given) => {
      committed = true;
      return given;
    });
    await settle();
    expect(committed).toBe(false);
    content.resolve();
    expect((await response).headers.get("x-commits")).toBe("1");
    expect(sseData(await (await response).text())).toHaveLength(4);
  });

  test(`the event after ${HELD_CHUNKS_MAX} empty ones commits`, async () => {
    const empty = events({ type: "reasoning", text: "" });
    const held = Array.from({ length: HELD_CHUNKS_MAX }, () => empty);
    const waiting = setUp([ACCEPTED, ...held, silence()]);
    let committed = false;
    void waiting.respond().then(() => (committed = true));
    await settle();
    expect(committed).toBe(false);
    const { respond, consumer } = setUp([ACCEPTED, ...held, empty, silence()]);
    const response = await respond();
    consumer.abort();
    expect([response.status, await response.text()]).toEqual([200, ": keep-alive\n\n"]);
  });

  test("a terminal without content commits an empty answer", async () => {
    const { respond, ends } = setUp([ACCEPTED, terminal({ finishReason: "length" })]);
    const data = sseData(await (await respond()).text());
    expect(data.at(-1)).toBe("[DONE]");
    expect(data.at(-2)).toMatchObject({ choices: [{ finish_reason: "length" }] });
    expect(ends).toHaveLength(1);
  });

  test.each([
    ["a Fault", new Fault("queue_full", "busy", { retryAfterMs: 2_000 }), "queue_full"],
    ["a bug", new TypeError("oops"), "internal"],
  ])("%s before content is thrown to the caller", async (_name, failure, code) => {
    const { respond, ends } = setUp([ACCEPTED, failure]);
    const thrown = await thrownBy(respond());
    expect((thrown as Fault).code).toBe(code as never);
    expect(ends).toEqual([{ fault: thrown as Fault, terminal: null }]);
  });

  test("an iteration that just ends is a provider failure", async () => {
    expect(await thrownBy(setUp([ACCEPTED]).respond())).toMatchObject({ code: "provider_failed" });
    const { respond, ends } = setUp([ACCEPTED, text("a")]);
    const data = sseData(await (await respond()).text());
    expect(data.at(-1)).toMatchObject({
      error: { type: "provider_error", message: "provider ended without completion" },
    });
    expect(ends.map((end) => end.fault?.code)).toEqual(["provider_failed"]);
  });

  test("a Fault after content: one error event, no [DONE]", async () => {
    const { respond, ends } = setUp([ACCEPTED, text("a"), new Fault("timeout", "request timed out")]);
    const body = await (await respond()).text();
    expect(body).not.toContain("[DONE]");
    expect(sseData(body).at(-1)).toEqual({
      error: { type: "timeout", message: "request timed out", code: "timeout", param: null },
    });
    expect(ends.map((end) => end.fault?.code)).toEqual(["timeout"]);
  });

  test("a consumer that cancels the body leaves the iteration", async () => {
    const { respond, ends, outputs } = setUp([ACCEPTED, text("a"), silence()]);
    const reader = (await respond()).body!.getReader();
    await reader.read();
    await reader.cancel();
    expect([ends.map((end) => end.fault?.code), outputs.returns]).toEqual([["cancelled"], 1]);
  });

  test("a body never read, then cancelled", async () => {
    const { respond, ends, outputs } = setUp([ACCEPTED, text("a"), silence()]);
    await (await respond()).body!.cancel();
    expect([ends.map((end) => end.fault?.code), outputs.returns]).toEqual([["cancelled"], 1]);
  });

  test("the signal ends a stream whose provider hangs, whoever reads it", async () => {
    const { respond, ends, outputs, consumer } = setUp([ACCEPTED, text("a"), silence()]);
    const response = await respond();
    const rest = response.text();
    await settle();
    consumer.abort();
    expect(sseData(await rest)).toHaveLength(2);
    expect([ends.map((end) => end.fault?.code), outputs.returns]).toEqual([["cancelled"], 1]);
  });

  test("the signal ends the wait for content", async () => {
    const { respond, ends, consumer, outputs } = setUp([ACCEPTED, silence()]);
    const thrown = thrownBy(respond());
    await settle();
    consumer.abort(new Fault("interrupted", "stopping"));
    expect(await thrown).toMatchObject({ code: "interrupted" });
    expect([ends.length, outputs.returns]).toEqual([1, 1]);
    const early = setUp([ACCEPTED, silence()]);
    early.consumer.abort();
    expect(await thrownBy(early.respond())).toMatchObject({ code: "cancelled" });
  });

  test("a consumer that does not read stops the reading upstream", async () => {
    const endless = function* (): Generator<ScriptLine> {
      yield ACCEPTED;
      for (;;) yield text("x".repeat(1_000));
    };
    const { respond, outputs } = setUp(endless());
    const response = await respond();
    await settle();
    const before = outputs.pulls;
    expect(before).toBeLessThan(5);
    const reader = response.body!.getReader();
    for (let count = 0; count < 10; count += 1) await reader.read();
    await settle();
    expect(outputs.pulls).toBeLessThan(before + 12);
    await reader.cancel();
  });

  test("a failing headers() is an HTTP error and not a half-open stream", async () => {
    const { respond, ends, clock, outputs } = setUp(
      [ACCEPTED, text("a"), silence()],
      {},
      {
        headers: () => {
          throw new Fault("provider_failed", "gone");
        },
        keepAliveMs: 10,
      },
    );
    expect(await thrownBy(respond())).toMatchObject({ code: "provider_failed" });
    expect([ends.length, clock.pendingTimers, outputs.returns]).toEqual([1, 0, 1]);
  });
});

test("an end is told once, whoever else ends it later", () => {
  const ends: RespondEnd[] = [];
  const stream = script([ACCEPTED]);
  const outputs = new Outputs(stream, (end) => ends.push(end));
  outputs.end({ fault: null, terminal: terminalOf() });
  expect(outputs.fail(new Error("late")).code).toBe("internal");
  expect([ends, stream.returns]).toEqual([[{ fault: null, terminal: terminalOf() }], 1]);
});

describe("keep-alive", () => {
  test("accepted and silent: commits with a comment, then comments in every silence; errors are then in the stream", async () => {
    const failure = Promise.withResolvers<void>();
    const { respond, clock, ends } = setUp(
      [ACCEPTED, failure.promise, new Fault("provider_failed", "lost")],
      {},
      { keepAliveMs: 15_000 },
    );
    const pending = respond();
    await settle();
    await clock.advance(14_999);
    let committed = false;
    void pending.then(() => (committed = true));
    await settle();
    expect(committed).toBe(false);
    await clock.advance(1);
    const reader = (await pending).body!.getReader();
    const read = async (): Promise<string> => new TextDecoder().decode((await reader.read()).value);
    expect(await read()).toBe(": keep-alive\n\n");
    const second = read();
    await clock.advance(15_000);
    expect(await second).toBe(": keep-alive\n\n");
    const last = read();
    failure.resolve();
    expect(await last).toContain('"type":"provider_error"');
    expect((await reader.read()).done).toBe(true);
    expect([ends.length, clock.pendingTimers]).toEqual([1, 0]);
  });

  test("a consumer that does not read gets no pile of comments", async () => {
    const { respond, clock, consumer } = setUp([ACCEPTED, text("a"), silence()], {}, { keepAliveMs: 1_000 });
    const response = await respond();
    await clock.advance(1_000_000);
    consumer.abort();
    expect((await response.text()).split(": keep-alive").length).toBeLessThan(4);
    expect(clock.pendingTimers).toBe(0);
  });
});

describe("whole answer", () => {
  test("JSON with the headers of the commit", async () => {
    const { respond, ends } = setUp([ACCEPTED, text("a"), text("b"), terminal()], { stream: false });
    const response = await respond();
    expect([response.status, response.headers.get("content-type"), response.headers.get("x-commits")]).toEqual([
      200,
      "application/json",
      "1",
    ]);
    expect(await response.json()).toMatchObject({ id: "chatcmpl-job1", choices: [{ message: { content: "ab" } }] });
    expect(ends).toEqual([{ fault: null, terminal: terminalOf() }]);
  });

  test("a Fault at any time is thrown", async () => {
    const { respond, ends } = setUp([ACCEPTED, text("a"), new Fault("timeout", "late")], { stream: false });
    expect(await thrownBy(respond())).toMatchObject({ code: "timeout" });
    expect(ends).toHaveLength(1);
    expect(await thrownBy(setUp([text("a")], { stream: false }).respond())).toMatchObject({ code: "provider_failed" });
  });

  test("the signal ends it although the provider hangs", async () => {
    const { respond, ends, consumer, outputs } = setUp([ACCEPTED, text("a"), silence()], { stream: false });
    const thrown = thrownBy(respond());
    await settle();
    consumer.abort();
    expect(await thrown).toMatchObject({ code: "cancelled" });
    expect([ends.length, outputs.returns]).toEqual([1, 1]);
  });
});
