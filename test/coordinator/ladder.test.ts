/** The ladder over real sockets: retries before content, none after, cancels, deadlines, slow readers. */
import { describe, expect, test } from "bun:test";
import type { CoordinatorOptions } from "../../src/coordinator/options.ts";
import type { WireFailureCode } from "../../src/core/fault.ts";
import { FRAME_KIND } from "../../src/protocol/frames.ts";
import { encodeEvents } from "../../src/protocol/payloads.ts";
import { createFakeClock } from "../support/fake-clock.ts";
import type { ScriptedJob, ScriptedProvider } from "../support/scripted-provider.ts";
import { waitFor } from "../support/wait.ts";
import { contentOf, errorOf, parseSse, readSse, startHarness, waitForLine, type Harness } from "./harness.ts";

type Script = (job: ScriptedJob, provider: () => ScriptedProvider) => void;

/** The first request anywhere meets `first`, every later one is answered. Which of the two providers gets it is chance. */
const pair = async (harness: Harness, first: Script): Promise<ScriptedProvider[]> => {
  let seen = 0;
  const providers: ScriptedProvider[] = [];
  for (const index of [0, 1])
    providers.push(
      await harness.provider({
        onRequest: (job) => {
          seen += 1;
          if (seen === 1) return first(job, () => providers[index]!);
          job.accept();
          job.text("from the second");
          job.finish();
        },
      }),
    );
  return providers;
};

const cancelsOf = (providers: readonly ScriptedProvider[]): string[] => providers.flatMap(({ cancels }) => cancels);
const jobsOf = (providers: readonly ScriptedProvider[]): ScriptedJob[] => providers.flatMap(({ jobs }) => jobs);

const failWith = (failure_code: WireFailureCode, status: number, reason?: string): Script => {
  return (job) => job.fail({ failure_code, status, ...(reason === undefined ? {} : { reason }) });
};

const fast: Partial<CoordinatorOptions> = { firstContentBaseMs: 300 };

describe("retry before content", () => {
  test.each<[string, Script, Partial<CoordinatorOptions>]>([
    ["generation failure", failWith("generation_failure", 500), {}],
    ["model not loaded", failWith("model_unavailable", 503, "model_load"), {}],
    ["no capacity", failWith("capacity", 503, "capacity_busy"), {}],
    ["a draining provider", failWith("capacity", 503, "draining"), { attemptsMax: 1 }],
    ["a status that lies about the class", failWith("internal_failure", 400), {}],
    ["a provider's own cancel", failWith("cancelled", 499, "cancelled"), {}],
    ["a dropped socket", (_job, provider) => provider().terminate(), {}],
    [
      "a dropped socket after accepted",
      (job, provider) => {
        job.accept();
        provider().close();
      },
      {},
    ],
    ["a provider that never answers", () => undefined, fast],
  ])("%s", async (_name, first, options) => {
    await using harness = await startHarness(options);
    const providers = await pair(harness, first);
    const response = await harness.chat({ stream: true });
    expect(response.status).toBe(200);
    expect(contentOf((await readSse(response)).data)).toBe("from the second");
    const jobs = jobsOf(providers);
    expect(jobs.length).toBe(2);
    expect(new Set(jobs.map(({ id }) => id)).size).toBe(2);
    expect(harness.coordinator.health().inflight).toBe(0);
  });

  test.each<[WireFailureCode, number, string]>([
    ["invalid_request", 400, "invalid inference request"],
    ["media_too_large", 413, "media input exceeds size limit"],
    ["unsupported_media", 415, "unsupported media input"],
    ["template_render", 422, "model template could not render the request"],
  ])("%s is final", async (code, status, message) => {
    await using harness = await startHarness();
    const providers = await pair(harness, failWith(code, 500));
    const response = await harness.chat({ stream: true });
    expect(response.status).toBe(status);
    expect(await errorOf(response)).toMatchObject({ type: "invalid_request_error", message });
    expect(jobsOf(providers).length).toBe(1);
  });

  test("three attempts at most, and the last failure's class decides the status", async () => {
    await using harness = await startHarness();
    const cases: [WireFailureCode, number, string][] = [
      ["generation_failure", 502, "provider_error"],
      ["capacity", 429, "rate_limit_exceeded"],
      ["model_unavailable", 503, "model_unavailable"],
    ];
    let code: WireFailureCode = "generation_failure";
    for (let index = 0; index < 5; index += 1)
      await harness.provider({ onRequest: (job) => job.fail({ failure_code: code, status: 500 }) });
    for (const [failure, status, type] of cases) {
      code = failure;
      const response = await harness.chat();
      expect(response.status).toBe(status);
      expect(response.headers.has("retry-after")).toBe(status !== 502);
      expect(await errorOf(response)).toMatchObject({
        type,
        code: "dispatch_exhausted",
        message: expect.stringContaining("after 3 attempts"),
      });
    }
  });

  test("with one provider its failure is told, and nobody is asked twice", async () => {
    await using harness = await startHarness();
    const provider = await harness.provider({ onRequest: () => provider.terminate() });
    const response = await harness.chat();
    expect(response.status).toBe(502);
    expect((await errorOf(response)).message).toContain("provider disconnected");
  });

  test("nobody answers: 504 within the deadline", async () => {
    await using harness = await startHarness(fast);
    const provider = await harness.provider({ onRequest: () => undefined });
    const response = await harness.chat();
    expect(response.status).toBe(504);
    expect(await errorOf(response)).toMatchObject({ type: "timeout" });
    await waitFor("the cancel", () => provider.cancels.length === 1);
  });

  test("requests wait for room in line and are served when it comes", async () => {
    await using harness = await startHarness();
    const held: ScriptedJob[] = [];
    await harness.provider({ concurrency: 1, onRequest: (job) => void held.push(job) });
    const answers = [1, 2, 3].map(() => harness.chat());
    for (let index = 0; index < 3; index += 1) {
      const job = await waitFor(`request ${index}`, () => held[index]);
      expect(held.length).toBe(index + 1);
      job.text("ok");
      job.finish();
    }
    for (const answer of answers) expect((await answer).status).toBe(200);
  });

  test("a line that does not move ends with 429", async () => {
    await using harness = await startHarness({ firstContentBaseMs: 1_200 });
    await harness.provider({ concurrency: 1, onRequest: (job) => job.accept() });
    const abort = new AbortController();
    const first = harness.chat({ stream: true }, { signal: abort.signal }).catch(() => null);
    await waitForLine(harness, "provider_admitted");
    await waitFor("the first to be in flight", () => harness.coordinator.health().inflight === 1);
    const second = await harness.chat();
    expect(second.status).toBe(429);
    expect(await errorOf(second)).toMatchObject({ type: "rate_limit_exceeded", code: "machine_busy" });
    expect(Number(second.headers.get("retry-after"))).toBeGreaterThanOrEqual(2);
    abort.abort();
    await first;
  });
});

describe("after content", () => {
  const dropAfterContent: Script = (job, provider) => {
    job.accept();
    job.text("partial");
    provider().terminate();
  };

  test.each<[string, Script, string]>([
    ["a dropped socket", dropAfterContent, "provider_error"],
    [
      "a failure",
      (job) => {
        job.text("partial");
        job.fail({ failure_code: "generation_failure", status: 500 });
      },
      "provider_error",
    ],
    [
      "a tampered frame",
      (job, provider) => {
        job.text("partial");
        const frame = job.seal(FRAME_KIND.chunk, encodeEvents([{ type: "text", text: "x" }]));
        frame[30]! ^= 1;
        provider().sendBytes(frame);
      },
      "provider_error",
    ],
  ])("%s is one SSE error without [DONE], and is not retried", async (_name, first, type) => {
    await using harness = await startHarness();
    const providers = await pair(harness, first);
    const response = await harness.chat({ stream: true });
    expect(response.status).toBe(200);
    const { data } = await readSse(response);
    expect(contentOf(data)).toBe("partial");
    expect(data.at(-1)).toMatchObject({ error: { type } });
    expect(data).not.toContain("[DONE]");
    expect(jobsOf(providers).length).toBe(1);
    expect((await harness.chat()).status).toBe(200);
  });

  test("without a stream the failure is an HTTP error", async () => {
    await using harness = await startHarness();
    await pair(harness, dropAfterContent);
    const response = await harness.chat();
    expect(response.status).toBe(502);
    expect(await errorOf(response)).toMatchObject({ type: "provider_error" });
  });

  test("late frames are counted and dropped", async () => {
    await using harness = await startHarness();
    const provider = await harness.provider({
      onRequest: (job) => {
        job.text("all");
        job.finish();
        job.text("late");
        job.finish();
        job.accept();
        job.fail({ failure_code: "internal_failure", status: 500 });
      },
    });
    const response = await harness.chat({ stream: true });
    expect(contentOf((await readSse(response)).data)).toBe("all");
    expect((await harness.chat()).status).toBe(200);
    expect(provider.open).toBe(true);
    provider.close();
    expect(JSON.parse(await waitForLine(harness, "provider_disconnected"))).toMatchObject({ lateFrames: 8 });
  });
});

describe("the consumer goes", () => {
  test("before content: the provider is told at once", async () => {
    await using harness = await startHarness();
    const provider = await harness.provider({ onRequest: (job) => job.accept() });
    for (const stream of [true, false]) {
      const abort = new AbortController();
      const count = provider.jobs.length;
      const answer = harness.chat({ stream }, { signal: abort.signal }).catch(() => "aborted");
      const job = await waitFor("the request", () => provider.jobs[count]);
      abort.abort();
      expect(await answer).toBe("aborted");
      await waitFor("the cancel", () => provider.cancels.includes(job.id));
    }
    await waitFor("nothing in flight", () => harness.coordinator.health().inflight === 0);
  });

  test("in the middle of a stream", async () => {
    await using harness = await startHarness();
    const provider = await harness.provider({ onRequest: (job) => job.text("one") });
    const abort = new AbortController();
    const response = await harness.chat({ stream: true }, { signal: abort.signal });
    const reader = response.body!.getReader();
    await reader.read();
    abort.abort();
    await waitFor("the cancel", () => provider.cancels.length === 1);
    await waitFor("nothing in flight", () => harness.coordinator.health().inflight === 0);
    expect(JSON.parse(await waitForLine(harness, "job_ended"))).toMatchObject({ outcome: "cancelled" });
  });

  test("while it waits in line", async () => {
    await using harness = await startHarness();
    const provider = await harness.provider({ concurrency: 1, onRequest: (job) => job.text("one") });
    const first = await harness.chat({ stream: true });
    const abort = new AbortController();
    const second = harness.chat({}, { signal: abort.signal }).catch(() => "aborted");
    await waitFor("two in flight", () => harness.coordinator.health().inflight === 2);
    abort.abort();
    expect(await second).toBe("aborted");
    await waitFor("one in flight", () => harness.coordinator.health().inflight === 1);
    provider.jobs[0]?.finish();
    await first.text();
    expect(provider.jobs.length).toBe(1);
  });

  test("who never reads is cancelled, in bounded memory", async () => {
    await using harness = await startHarness();
    const chunk = "x".repeat(60_000);
    let sent = 0;
    const provider = await harness.provider({
      onRequest: async (job) => {
        job.accept();
        // Far more than the coordinator and both sockets hold; waits for the event loop so that a cancel can arrive.
        while (!job.cancelled && sent < 4_000) {
          job.text(chunk);
          sent += 1;
          await new Promise((resolve) => setImmediate(resolve));
        }
      },
    });
    const socket = await Bun.connect({
      hostname: "127.0.0.1",
      port: Number(new URL(harness.coordinator.url).port),
      socket: { data: (reader) => reader.pause() },
    });
    const body = JSON.stringify({ model: "test-model", stream: true, messages: [{ role: "user", content: "Hi" }] });
    socket.write(
      `POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${harness.key}\r\nContent-Length: ${body.length}\r\n\r\n${body}`,
    );
    await waitFor("the cancel", () => provider.cancels.length === 1, 20_000);
    expect(sent).toBeLessThan(4_000);
    expect(JSON.parse(await waitForLine(harness, "job_ended"))).toMatchObject({ outcome: "consumer_too_slow" });
    expect(harness.coordinator.health().inflight).toBe(0);
    socket.terminate();
  }, 30_000);
});

describe("silence", () => {
  test("40 s before the first token survive, with keep-alive comments", async () => {
    const clock = createFakeClock();
    await using harness = await startHarness({}, { clock });
    const provider = await harness.provider({ onRequest: (job) => job.accept() });
    const pending = harness.chat({ stream: true });
    const job = await waitFor("the request", () => provider.jobs[0]);
    await provider.sync();
    for (let second = 0; second < 40; second += 1) {
      await clock.advance(1_000);
      // A living provider is heard of all the time.
      await provider.sync();
    }
    const committed = await pending;
    expect(committed.status).toBe(200);
    job.text("at last");
    job.finish();
    const { data, comments } = parseSse(await committed.text());
    expect(comments.length).toBeGreaterThanOrEqual(2);
    expect(comments.every((comment) => comment === "keep-alive")).toBe(true);
    expect(contentOf(data)).toBe("at last");
    expect(data.at(-1)).toBe("[DONE]");
  });

  test("a stream silent for too long ends with a timeout event", async () => {
    await using harness = await startHarness({ silenceMs: 60 });
    const provider = await harness.provider({ onRequest: (job) => job.text("one") });
    const response = await harness.chat({ stream: true });
    const { data } = await readSse(response);
    expect(data.at(-1)).toMatchObject({ error: { type: "timeout", message: "request timed out" } });
    await waitFor("the cancel", () => cancelsOf([provider]).length === 1);
  });
});
