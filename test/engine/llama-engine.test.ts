/** The main-thread side of the real engine, against a worker that behaves as badly as a test wants. */
import { describe, expect, test } from "bun:test";
import type { Log } from "../../src/core/log.ts";
import type { Engine, EngineModel } from "../../src/engine/engine.ts";
import { openLlamaEngine } from "../../src/engine/llama-engine.ts";
import type {
  FromWorker,
  ReadyMessage,
  TicketOutput,
  ToWorker,
  WorkerStats,
} from "../../src/engine/worker-protocol.ts";
import { chat, run } from "../support/collect.ts";
import { createFakeClock, type FakeClock } from "../support/fake-clock.ts";
import { waitFor } from "../support/wait.ts";

const SILENT: Log = { debug: () => {}, info: () => {}, warn: () => {}, error: () => {}, with: () => SILENT };

const MODEL: EngineModel = {
  id: "m",
  contextTokens: 64,
  rows: 2,
  sizeBytes: 1,
  quantization: null,
  architecture: "x",
  parameters: null,
  templateRenderOk: true,
  toolsSupported: true,
};

const IDLE: WorkerStats = {
  rowsRunning: 0,
  requestsWaiting: 0,
  activeTokens: 0,
  tokensPotentialMax: 0,
  decodeTps: null,
  prefillTps: null,
  stepsExecuted: 0,
  tokensGenerated: 0,
  requestsServed: 0,
};

/** Answers nothing by itself. */
class ScriptedWorker extends EventTarget {
  readonly received: ToWorker[] = [];
  terminated = false;

  postMessage(message: ToWorker): void {
    this.received.push(message);
  }

  terminate(): void {
    this.terminated = true;
  }

  say(message: FromWorker | ReadyMessage): void {
    const data = message.type === "ready" ? message : JSON.stringify(message);
    this.dispatchEvent(new MessageEvent("message", { data }));
  }

  step(outputs: readonly TicketOutput[], stats: Partial<WorkerStats> = {}): void {
    this.say({ type: "step", outputs, stats: { ...IDLE, ...stats } });
  }
}

interface Scene {
  readonly clock: FakeClock;
  readonly worker: ScriptedWorker;
  readonly engine: Promise<Engine>;
}

const scene = (onProgress?: (fraction: number) => void): Scene => {
  const clock = createFakeClock();
  const worker = new ScriptedWorker();
  const engine = openLlamaEngine({
    location: { dir: "", shimPath: "", cpuBackend: null, pin: "", sha256: "" },
    modelPath: "m.gguf",
    id: "m",
    contextTokens: 64,
    rows: 2,
    threads: 1,
    gpuLayers: 0,
    clock,
    log: SILENT,
    spawnWorker: () => worker,
    ...(onProgress === undefined ? {} : { onProgress }),
  });
  return { clock, worker, engine };
};

const open = async (): Promise<{ clock: FakeClock; worker: ScriptedWorker; engine: Engine; abortFlag: Int32Array }> => {
  const { clock, worker, engine } = scene();
  const abortFlag = new Int32Array(new SharedArrayBuffer(4));
  worker.say({ type: "ready", model: MODEL, abortFlag });
  return { clock, worker, engine: await engine, abortFlag };
};

const codeOf = (promise: Promise<unknown>): Promise<unknown> =>
  promise.then(
    () => "nothing thrown",
    (error: unknown) => error,
  );

describe("opening", () => {
  test("progress is passed on, and what the worker reports is thrown", async () => {
    const seen: number[] = [];
    const { worker, engine } = scene((fraction) => seen.push(fraction));
    worker.say({ type: "progress", fraction: 0.5 });
    worker.say({ type: "failed", fault: { code: "memory_short", message: "too large", hint: "smaller" } });
    expect(await codeOf(engine)).toMatchObject({ code: "memory_short", message: "too large", hint: "smaller" });
    expect(seen).toEqual([0.5]);
    expect(worker.terminated).toBe(true);
  });

  test("a worker that dies or stays silent for ten minutes is a fault", async () => {
    const dead = scene();
    dead.worker.dispatchEvent(new Event("error"));
    expect(await codeOf(dead.engine)).toMatchObject({ code: "engine_failed", reason: "crashed" });

    const silent = scene();
    const outcome = codeOf(silent.engine);
    await silent.clock.advance(599_000);
    silent.worker.say({ type: "progress", fraction: 0.1 }); // progress buys more time
    await silent.clock.advance(599_000);
    expect(silent.worker.terminated).toBe(false);
    await silent.clock.advance(2_000);
    expect(await outcome).toMatchObject({ code: "engine_failed", reason: "load_timeout" });
  });
});

describe("running", () => {
  test("a step that does not return for 120 s is a wedge: a retryable fault for all, and the end of the engine", async () => {
    const { clock, worker, engine } = await open();
    const running = codeOf(run(engine, chat("a")));
    worker.step([{ ticket: 1, accepted: true }], { rowsRunning: 1, stepsExecuted: 1 });
    await clock.advance(100_000);
    worker.step([{ ticket: 1, events: [{ type: "text", text: "a" }] }], { rowsRunning: 1, stepsExecuted: 2 });
    await clock.advance(100_000);
    expect(engine.stats()).toMatchObject({ rowsRunning: 1, msSinceLastStep: 100_000 });
    await clock.advance(40_000);
    expect(await running).toMatchObject({ code: "engine_failed", reason: "wedged", retryable: true });
    expect(await engine.ended).toMatchObject({ code: "engine_failed", reason: "wedged" });
    expect(await codeOf(run(engine, chat("b")))).toMatchObject({ reason: "wedged" });
    expect(engine.stats().rowsRunning).toBe(0);
  });

  test("a row that nobody waits for any more is still watched; an idle engine is not", async () => {
    const { clock, worker, engine } = await open();
    const abort = new AbortController();
    const running = codeOf(run(engine, chat("a"), abort.signal));
    worker.step([{ ticket: 1, accepted: true }], { rowsRunning: 1 });
    abort.abort();
    expect(await running).toMatchObject({ code: "cancelled" });
    expect(worker.received.at(-1)).toEqual({ type: "cancel", ticket: 1 });
    expect(clock.pendingTimers).toBe(1);
    worker.step([]);
    expect(clock.pendingTimers).toBe(0);
  });

  for (const [what, cause] of [
    ["an error event", (worker: ScriptedWorker) => worker.dispatchEvent(new Event("error"))],
    ["an unexpected close", (worker: ScriptedWorker) => worker.dispatchEvent(new Event("close"))],
    [
      "a reported failure",
      (worker: ScriptedWorker) => worker.say({ type: "failed", fault: { code: "internal", message: "x" } }),
    ],
  ] as const)
    test(`${what} fails what runs, counts included, and ends the engine`, async () => {
      const { worker, engine } = await open();
      const running = codeOf(run(engine, chat("a")));
      const count = codeOf(engine.countPromptTokens({ messages: [] }));
      cause(worker);
      for (const outcome of [running, count]) expect(await outcome).toMatchObject({ code: "engine_failed" });
      expect(await engine.ended).toMatchObject({ code: "engine_failed", reason: "crashed" });
      expect(await codeOf(engine.countPromptTokens({ messages: [] }))).toMatchObject({ code: "engine_failed" });
    });

  test("output for a cancelled ticket is dropped, a fault arrives whole", async () => {
    const { worker, engine } = await open();
    const running = codeOf(run(engine, chat("a")));
    await waitFor("the submit", () => worker.received.some((message) => message.type === "submit"));
    const fault = { code: "queue_full", message: "busy", retryAfterMs: 1000 } as const;
    worker.step([
      { ticket: 99, events: [{ type: "text", text: "not ours" }] },
      { ticket: 1, fault },
    ]);
    expect(await running).toMatchObject(fault);
  });
});

describe("closing", () => {
  test("it raises the abort flag, waits for the worker and ends without a fault", async () => {
    const { worker, engine, abortFlag } = await open();
    const running = codeOf(run(engine, chat("a")));
    const closed = engine[Symbol.asyncDispose]();
    expect(await running).toMatchObject({ code: "cancelled" });
    expect([abortFlag[0], worker.received.at(-1)]).toEqual([1, { type: "close" }]);
    expect(worker.terminated).toBe(false);
    worker.say({ type: "closed" });
    await closed;
    expect(worker.terminated).toBe(true);
    expect(await engine.ended).toBeNull();
  });

  test("a worker that does not answer is given up within 5 s", async () => {
    const { clock, worker, engine } = await open();
    const closed = engine[Symbol.asyncDispose]();
    await clock.advance(4_999);
    await closed;
    expect(worker.terminated).toBe(true);
    expect(clock.pendingTimers).toBe(0);
  });
});
