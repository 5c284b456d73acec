/** The provider against a scripted coordinator on real sockets: registration, attempts, cancels, losses, drains, misbehaviour. */
import { afterEach, describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { systemClock, type Clock } from "../../src/core/clock.ts";
import { Fault } from "../../src/core/fault.ts";
import { systemRandom, type Random } from "../../src/core/ids.ts";
import { SOCKET_BUDGET_BYTES_MAX } from "../../src/core/limits.ts";
import type { ChatRequest } from "../../src/dialects/chat/request.ts";
import { createFakeEngine, type FakeEngine, type FakeEngineOptions } from "../../src/engine/fake-engine.ts";
import { fakeText } from "../../src/engine/fake-plan.ts";
import { EXIT_ENGINE_LOST, type ProviderServing, type StartPhase } from "../../src/provider/lifecycle.ts";
import { startProvider, type Provider, type ProviderOptions } from "../../src/provider/provider.ts";
import { openLinkSocket, type OpenLinkSocket } from "../../src/provider/link/link-socket.ts";
import { readState } from "../../src/provider/state/state-file.ts";
import { openSoftwareSigner } from "../../src/trust/signer.ts";
import { makeJoinToken } from "../../src/trust/tokens.ts";
import { memoryLog } from "../support/memory-log.ts";
import { ScriptedCoordinator, type ScriptedConnection, type SendOptions } from "../support/scripted-coordinator.ts";
import { tempDir, type TempDir } from "../support/temp-dir.ts";
import { waitFor } from "../support/wait.ts";

const MODEL = "demo";
const SECRET = `jt-db-${"a".repeat(64)}`;
const HASH = "5".repeat(64);

interface Bench {
  readonly dir: TempDir;
  readonly coordinator: ScriptedCoordinator;
  readonly provider: Provider;
  readonly engine: FakeEngine;
  readonly phases: StartPhase[];
  readonly serving: ProviderServing[];
  readonly faults: Fault[];
  readonly lines: readonly string[];
}

interface BenchOptions {
  readonly engine?: FakeEngineOptions;
  readonly automatic?: boolean;
  readonly clock?: Clock;
  readonly random?: Random;
  readonly fingerprint?: string;
  readonly openSocket?: OpenLinkSocket;
  readonly before?: (coordinator: ScriptedCoordinator) => void;
}

const cleanups: (() => PromiseLike<unknown>)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).toReversed()) await cleanup();
});

const HARDWARE: ProviderOptions["hardware"] = {
  machine_model: "Test1,1",
  chip_name: "Test",
  chip_family: "Unknown",
  chip_tier: "Unknown",
  memory_gb: 8,
  memory_available_gb: 4,
  cpu_cores: { total: 2, performance: 2, efficiency: 0 },
  gpu_cores: 0,
  memory_bandwidth_gbs: 10,
};

/** Retries come at once: the lengths of the waits are the link machine's own tests. */
const eagerRandom = (): Random => ({ ...systemRandom(), fraction: () => 0 });

const startBench = async (options: BenchOptions = {}): Promise<Bench> => {
  const dir = await tempDir();
  cleanups.push(() => dir[Symbol.asyncDispose]());
  const coordinator = await ScriptedCoordinator.start({
    keyPath: join(dir.path, "coordinator.key"),
    automatic: options.automatic ?? true,
  });
  cleanups.push(() => coordinator[Symbol.asyncDispose]());
  options.before?.(coordinator);
  const engine = createFakeEngine({ ...options.engine, model: { id: MODEL } });
  const { log, lines } = memoryLog();
  const phases: StartPhase[] = [];
  const serving: ProviderServing[] = [];
  const faults: Fault[] = [];
  const provider = await startProvider(
    {
      clock: options.clock ?? systemClock(),
      random: options.random ?? eagerRandom(),
      log,
      signer: await openSoftwareSigner(join(dir.path, "identity.key")),
      ...(options.openSocket === undefined ? {} : { openSocket: options.openSocket }),
      readMetrics: () =>
        Promise.resolve({
          memory_pressure: 0.5,
          cpu_usage: 0.1,
          thermal_state: "nominal",
          memoryTotalBytes: 8e9,
          memoryAvailableBytes: 4e9,
        }),
    },
    {
      dataDir: dir.path,
      version: "1.2.3",
      coordinatorUrl: coordinator.url,
      joinToken: makeJoinToken({ secret: SECRET, fingerprint: options.fingerprint ?? coordinator.signer.fingerprint }),
      hardware: HARDWARE,
      system: () => ({
        os: { platform: "linux", version: "1", arch: "x64" },
        posture: {
          sip_enabled: null,
          secure_boot_enabled: null,
          authenticated_root_enabled: null,
          core_dumps_disabled: null,
        },
        build_sha256: null,
        native_sha256: null,
      }),
      model: { id: MODEL, hash: () => Promise.resolve({ manifestSha256: HASH }), open: () => Promise.resolve(engine) },
      events: {
        onPhase: (phase) => phases.push(phase),
        onServing: (event) => serving.push(event),
        onFault: (fault) => faults.push(fault),
      },
    },
  );
  cleanups.push(() => provider.stop({ graceMs: 0 }));
  return { dir, coordinator, provider, engine, phases, serving, faults, lines };
};

const startServing = async (
  options: BenchOptions = {},
): Promise<Bench & { readonly connection: ScriptedConnection }> => {
  const bench = await startBench(options);
  await waitFor("serving", () => bench.serving.length > 0);
  return { ...bench, connection: await bench.coordinator.connection() };
};

const chat = (content: string, extra: Partial<ChatRequest> = {}): ChatRequest => ({
  model: MODEL,
  messages: [{ role: "user", content }],
  stream: true,
  ...extra,
});

const run = async (connection: ScriptedConnection, request: ChatRequest, options?: SendOptions) =>
  (await connection.run(request, options)).end();

const ENDLESS: FakeEngineOptions = {
  script: () => ({ events: [{ type: "text", text: "la " }], endless: true, delayBetweenMs: 1 }),
};
const stateOf = (bench: Pick<Bench, "dir">) => readState({ dataDir: bench.dir.path, nowMs: Date.now() })?.state;

describe("joining", () => {
  test("registers, proves itself, serves, and says so", async () => {
    const bench = await startServing();
    const register = bench.connection.of("register")[0];
    expect(bench.connection.authorization).toBe(`Bearer ${SECRET}`);
    expect(register).toMatchObject({ protocol: 1, version: "1.2.3", hardware: HARDWARE });
    expect(register?.models).toEqual([
      {
        id: MODEL,
        manifest_sha256: HASH,
        size_bytes: 1_000_000,
        quantization: null,
        context: 8192,
        vision: false,
        tools: true,
        template_render_ok: true,
      },
    ]);
    expect(bench.phases).toEqual(["hashing", "loading", "connecting"]);
    expect(bench.serving).toEqual([{ models: [MODEL], provider_id: bench.provider.id, trust_level: "self_signed" }]);
    expect(stateOf(bench)).toMatchObject({
      phase: "serving",
      provider_id: bench.provider.id,
      models: [MODEL],
      trust: { status: "online" },
    });
    const heartbeat = await bench.connection.wait("heartbeat");
    expect(heartbeat.backend_capacity.slots).toMatchObject([{ model: MODEL, state: "idle", max_concurrency: 4 }]);
  });

  test("a coordinator with another key is not served", async () => {
    const bench = await startBench({ fingerprint: "0".repeat(32) });
    await waitFor("the fault", () => bench.faults[0]);
    expect(bench.faults[0]).toMatchObject({ code: "provider_rejected", reason: "coordinator_key_mismatch" });
    expect((await bench.coordinator.connection()).of("attestation_response")).toEqual([]);
    expect(bench.serving).toEqual([]);
  });

  test("a refused join token and a wrong URL each say what to type", async () => {
    for (const [status, reason] of [
      [401, "join_token_refused"],
      [404, "url_wrong"],
      [426, "url_wrong"],
    ] as const) {
      const bench = await startBench({
        before: (coordinator) => {
          coordinator.refusal = status;
        },
      });
      const fault = await waitFor("the fault", () => bench.faults[0]);
      expect(fault).toMatchObject({ code: "provider_rejected", reason });
      expect(fault.hint).toBeString();
      expect(stateOf(bench)).toMatchObject({ phase: "backoff", last_error: { code: "provider_rejected" } });
    }
  });

  test("an untrusted verdict keeps the link and tells why", async () => {
    const bench = await startServing();
    bench.connection.judge("untrusted", "posture_false");
    const fault = await waitFor("the fault", () => bench.faults[0]);
    expect(fault.reason).toBe("posture_false");
    expect(bench.provider.linkPhase).toBe("attesting");
    bench.connection.judge("online");
    await waitFor("serving again", () => bench.serving.length === 2);
    expect(bench.connection.isOpen).toBe(true);
  });

  test("every challenge is answered; K rotates with a statement when it is due", async () => {
    let nowMs = 1_700_000_000_000;
    const bench = await startServing({ clock: { ...systemClock(), nowMs: () => nowMs } });
    const first = await bench.connection.challenge();
    expect(first.outcome).toBe("verified");
    const { k_public: registered } = await bench.connection.wait("register");
    expect(first.statement?.k_public).toBe(registered);
    nowMs += 86_400_001;
    const rotated = await bench.connection.challenge();
    expect(rotated.outcome).toBe("verified");
    expect(rotated.statement?.k_public).not.toBe(registered);
    for (const kPublic of [registered, rotated.statement?.k_public ?? ""])
      expect((await run(bench.connection, chat("after rotation"), { kPublic })).terminals.length).toBe(1);
  });

  test("a message of another version is answered and ignored", async () => {
    const { connection } = await startServing();
    connection.sendRaw(JSON.stringify({ type: "desired_models", models: [] }));
    expect(await connection.wait("unsupported")).toEqual({ type: "unsupported", unsupported_type: "desired_models" });
    expect((await run(connection, chat("still here"))).terminals.length).toBe(1);
  });
});

describe("attempts", () => {
  test("a request comes back as sealed events and one terminal", async () => {
    const { connection, engine } = await startServing();
    const attempt = await run(connection, chat("hello", { seed: 3, max_tokens: 9, stop: ["zzz"] }));
    expect(engine.requests[0]).toMatchObject({ id: attempt.id, tokensMax: 9, stop: ["zzz"], sampling: { seed: 3 } });
    expect(attempt.text).toBe(fakeText(engine.requests[0]!, 9));
    expect(attempt.terminals[0]).toMatchObject({
      finishReason: "length",
      usage: { completionTokens: 9 },
      chunks: attempt.order.length - 2,
    });
    expect(attempt.order[0]).toBe("accepted");
    expect(attempt.order.at(-1)).toBe("terminal");
    expect(connection.faults).toEqual([]);
  });

  test("64 streams at once arrive byte for byte", async () => {
    const { connection, engine } = await startServing({ engine: { rows: 16, waitingMax: 64 } });
    const attempts = await Promise.all(
      Array.from({ length: 64 }, (_, index) =>
        connection.run(chat(`question ${index} — Ünïcödé 東京`, { max_tokens: 128, ignore_eos: true })),
      ),
    );
    await Promise.all(attempts.map((attempt) => attempt.end(30_000)));
    for (const attempt of attempts) {
      const request = engine.requests.find(({ id }) => id === attempt.id)!;
      const whole = fakeText(request);
      expect(attempt.text).toBe(fakeText(request).repeat(6).slice(0, attempt.text.length));
      expect(attempt.text.length).toBeGreaterThan(whole.length * 5);
      expect(attempt.terminals[0]?.usage.completionTokens).toBe(128);
      expect(attempt.order.filter((item) => item === "terminal").length).toBe(1);
    }
    expect(connection.faults).toEqual([]);
  }, 60_000);

  test("a request in several parts is put together", async () => {
    const { connection, engine } = await startServing({ engine: { contextTokens: 10_000_000 } });
    const content = "word ".repeat(700_000);
    const attempt = await run(connection, chat(content, { max_tokens: 3 }));
    expect(attempt.request.parts).toBe(4);
    expect(attempt.terminals.length).toBe(1);
    expect(engine.requests[0]?.messages).toEqual([{ role: "user", content }]);
  });

  test("an id opens once", async () => {
    const { connection } = await startServing();
    const first = await run(connection, chat("x"));
    const again = await connection.run(chat("x"), { id: first.id });
    expect((await again.end()).errors[0]).toMatchObject({ failure_code: "encryption_failure", reason: "replayed" });
  });

  test("tampered, foreign and unreadable requests each get one closed error and no quote", async () => {
    const { connection, lines } = await startServing();
    const flipped = await connection.seal(chat("canary-9 flipped"));
    for (const frame of flipped.requestFrames) frame[frame.length - 1] = (frame.at(-1) ?? 0) ^ 1;
    connection.submit(flipped);
    expect((await flipped.end()).errors[0]).toMatchObject({ failure_code: "encryption_failure", status: 502 });
    const stranger = Buffer.from(systemRandom().bytes(32)).toString("base64");
    expect((await run(connection, chat("x"), { kPublic: stranger })).errors[0]?.failure_code).toBe(
      "encryption_failure",
    );
    const garbage = await run(connection, chat("x"), { body: new TextEncoder().encode('{"canary-9":') });
    expect(garbage.errors[0]).toEqual({
      type: "inference_error",
      request_id: garbage.id,
      failure_code: "invalid_request",
      status: 400,
    });
    expect((await run(connection, chat("x"), { model: "unknown" })).errors[0]).toMatchObject({
      failure_code: "model_unavailable",
      status: 404,
    });
    expect((await run(connection, chat("x".repeat(10) + " y".repeat(9_000)))).errors[0]).toMatchObject({
      failure_code: "invalid_request",
      reason: "request_exceeds_context",
    });
    expect(lines.join("")).not.toContain("canary");
    expect(connection.isOpen).toBe(true);
  });

  test("what breaks the protocol ends the connection, and the provider comes back", async () => {
    const bench = await startServing();
    bench.connection.sendRaw("{not json");
    const second = await bench.coordinator.connection(1);
    await waitFor("the second serving", () => bench.serving.length === 2);
    second.sendRaw(new Uint8Array(8));
    const third = await bench.coordinator.connection(2);
    await waitFor("the third serving", () => bench.serving.length === 3);
    third.sendRaw(new Uint8Array(33 << 20));
    await bench.coordinator.connection(3);
    await waitFor("the fourth serving", () => bench.serving.length === 4);
  });

  test("an attempt without a row by its budget is given up; one that holds a row may stay silent past it", async () => {
    const { connection, engine } = await startServing({
      engine: { rows: 1, script: () => ({ events: [{ type: "text", text: "late" }], delayFirstMs: 300 }) },
    });
    const silent = run(connection, chat("x"), { budgetMs: 100 });
    await waitFor("the row to be held", () => engine.stats().rowsRunning === 1);
    const waiting = await run(connection, chat("y"), { budgetMs: 50 });
    expect(waiting.errors[0]).toMatchObject({ failure_code: "capacity", reason: "deadline_unreachable" });
    const { errors, text } = await silent;
    expect([errors, text]).toEqual([[], "late"]);
    await waitFor("the row to be freed", () => engine.stats().rowsRunning === 0);
  });

  test("a coordinator that does not read is given up by the attempt that fills the socket", async () => {
    let stuckBytes = 0;
    const { connection, engine } = await startServing({
      engine: ENDLESS,
      openSocket: (options, events) => {
        const socket = openLinkSocket(options, events);
        return {
          ...socket,
          get bufferedBytes() {
            return socket.bufferedBytes + stuckBytes;
          },
        };
      },
    });
    const attempt = await connection.run(chat("x"));
    await waitFor("output", () => attempt.events.length > 0);
    stuckBytes = SOCKET_BUDGET_BYTES_MAX + 1;
    expect((await attempt.end()).errors[0]).toMatchObject({ failure_code: "cancelled", status: 499 });
    expect(engine.stats().rowsRunning).toBe(0);
  });

  test("an engine's failure after output carries what was generated", async () => {
    const { connection } = await startServing({
      engine: {
        script: () => ({
          events: [{ type: "text", text: "a" }],
          endless: true,
          failure: { afterTokens: 5, fault: new Fault("engine_failed", "no") },
        }),
      },
    });
    const attempt = await run(connection, chat("two words"));
    expect(attempt.text).toBe("aaaaa");
    expect(attempt.errors[0]).toMatchObject({ failure_code: "generation_failure", usage: { prompt_tokens: 6 } });
    expect(attempt.terminals).toEqual([]);
  });
});

describe("cancels", () => {
  test("before the request is here: a tombstone", async () => {
    const { connection, engine } = await startServing();
    const attempt = await connection.seal(chat("x"));
    connection.send({ type: "cancel", request_id: attempt.id });
    connection.submit(attempt);
    expect((await attempt.end()).errors).toMatchObject([{ failure_code: "cancelled", status: 499 }]);
    expect((await run(connection, chat("next"))).terminals.length).toBe(1);
    expect(engine.requests.length).toBe(1);
  });

  test("while its parts arrive", async () => {
    const { connection } = await startServing();
    const attempt = await connection.seal(chat("x"));
    connection.send(attempt.request);
    connection.send({ type: "cancel", request_id: attempt.id });
    for (const frame of attempt.requestFrames) connection.sendRaw(frame);
    expect((await attempt.end()).errors).toMatchObject([{ status: 499 }]);
    expect(attempt.errors[0]?.usage).toBeUndefined();
  });

  test("before output", async () => {
    const { connection, engine } = await startServing({
      engine: { script: () => ({ events: [], delayFirstMs: 60_000 }) },
    });
    const attempt = await connection.run(chat("x"));
    await waitFor("accepted", () => attempt.order.includes("accepted"));
    connection.send({ type: "cancel", request_id: attempt.id });
    connection.send({ type: "cancel", request_id: attempt.id });
    expect((await attempt.end()).errors).toMatchObject([
      { failure_code: "cancelled", reason: "cancelled", status: 499 },
    ]);
    expect(engine.stats().rowsRunning).toBe(0);
  });

  test("after output: what was sent is counted, and exactly one terminal follows", async () => {
    const { connection, engine } = await startServing({ engine: ENDLESS });
    const attempt = await connection.run(chat("x"));
    await waitFor("output", () => attempt.events.length > 2);
    connection.send({ type: "cancel", request_id: attempt.id });
    await attempt.end();
    await waitFor("the row to be freed", () => engine.stats().rowsRunning === 0);
    expect(attempt.errors[0]?.usage?.completion_tokens).toBe(attempt.text.length / 3);
    connection.send({ type: "cancel", request_id: attempt.id });
    // An answered challenge comes after everything that was sent before it.
    await connection.challenge();
    expect(attempt.errors.length + attempt.terminals.length).toBe(1);
  });
});

describe("losses", () => {
  test("a dropped socket ends its attempts, and the provider comes back with its resume token", async () => {
    const bench = await startServing({ engine: ENDLESS });
    const attempt = await bench.connection.run(chat("x"));
    await waitFor("output", () => attempt.events.length > 0);
    bench.connection.cut();
    await waitFor("the row to be freed", () => bench.engine.stats().rowsRunning === 0);
    const second = await bench.coordinator.connection(1);
    await waitFor("serving again", () => bench.serving.length === 2);
    expect((await second.wait("register")).resume_token).toMatch(/^rt-/);
    expect(bench.phases).toEqual(["hashing", "loading", "connecting", "connecting"]);
    const first = bench.connection.of("register")[0];
    expect(second.of("register")[0]?.identity_key).toBe(first?.identity_key ?? "");
  });

  test("a crashed engine shows at once and asks for the end of the process", async () => {
    const bench = await startServing({ engine: ENDLESS });
    const attempt = await bench.connection.run(chat("x"));
    await waitFor("output", () => attempt.events.length > 0);
    bench.engine.crash();
    expect((await attempt.end()).errors[0]).toMatchObject({ failure_code: "generation_failure" });
    await waitFor("the heartbeat", () =>
      bench.connection.of("heartbeat").some(({ backend_capacity }) => backend_capacity.slots[0]?.state === "crashed"),
    );
    expect((await bench.provider.ended).exitCode).toBe(EXIT_ENGINE_LOST);
    expect((await run(bench.connection, chat("late"))).errors[0]).toMatchObject({
      failure_code: "model_unavailable",
      status: 503,
    });
  });
});

describe("ends", () => {
  test("a drain refuses new work, lets running work end, waits for the ack", async () => {
    const { connection, engine, provider, dir } = await startServing({
      engine: {
        script: () => ({
          events: [
            { type: "text", text: "a" },
            { type: "text", text: "b" },
          ],
          delayBetweenMs: 150,
        }),
      },
    });
    const running = await connection.run(chat("x"));
    const halfHere = await connection.seal(chat("between the two checks"));
    connection.send(halfHere.request);
    await waitFor("output", () => running.events.length > 0);
    const stopped = provider.stop({ graceMs: 5_000 });
    const { drain_id } = await connection.wait("provider_drain");
    const refused = { failure_code: "capacity", reason: "draining", status: 503 };
    for (const frame of halfHere.requestFrames) connection.sendRaw(frame);
    expect((await halfHere.end()).errors[0]).toMatchObject(refused);
    // Refused by its first message already: nothing of the prompt is needed for that.
    const late = await connection.seal(chat("late"));
    connection.send(late.request);
    expect((await late.end()).errors[0]).toMatchObject(refused);
    expect(engine.requests.length).toBe(1);
    await running.end();
    expect(running.text).toBe("ab");
    expect(running.terminals.length).toBe(1);
    expect(connection.isOpen).toBe(true);
    connection.send({ type: "provider_drain_ack", drain_id });
    await stopped;
    await waitFor("the hang-up", () => connection.closeCode === 1001);
    expect(stateOf({ dir })).toMatchObject({ phase: "stopped", models: [] });
  });

  test("what outlives the grace is cancelled with its terminal, within 5 s in all", async () => {
    const { connection, provider } = await startServing({ engine: ENDLESS });
    const attempt = await connection.run(chat("x"));
    await waitFor("output", () => attempt.events.length > 0);
    const startMs = performance.now();
    await provider.stop({ graceMs: 100 });
    expect(performance.now() - startMs).toBeLessThan(5_000);
    expect((await attempt.end()).errors[0]).toMatchObject({ reason: "draining" });
  });

  test("prompts and answers are in no log line and no state file", async () => {
    const { connection, lines, dir } = await startServing();
    const attempt = await run(connection, chat("canary-77 in a prompt"));
    expect(attempt.text.length).toBeGreaterThan(0);
    const answer = attempt.text.slice(0, 20);
    for (const text of [lines.join(""), readFileSync(join(dir.path, "state.json"), "utf8")]) {
      expect(text).not.toContain("canary-77");
      expect(text).not.toContain(answer);
    }
    expect(lines.join("")).toContain("attempt_ended");
  });
});
