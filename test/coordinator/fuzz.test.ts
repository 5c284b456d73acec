/** Hostile input at the coordinator's doors: mutated control messages and data frames on a live session, mutated bodies over HTTP. */
import { describe, expect, test } from "bun:test";
import { Fault } from "../../src/core/fault.ts";
import { createIds, systemRandom } from "../../src/core/ids.ts";
import { systemClock } from "../../src/core/clock.ts";
import { createLog } from "../../src/core/log.ts";
import { createKey } from "../../src/coordinator/accounts/keys.ts";
import { DrainGate } from "../../src/coordinator/drain-gate.ts";
import { answer } from "../../src/coordinator/http/answer.ts";
import { COORDINATOR_DEFAULTS } from "../support/coordinator-defaults.ts";
import { pickLeastLoaded } from "../../src/coordinator/routing/pick.ts";
import { ProviderRegistry } from "../../src/coordinator/routing/registry.ts";
import { RunningAttempt } from "../../src/coordinator/routing/running-attempt.ts";
import { WaitingRoom } from "../../src/coordinator/routing/waiting-room.ts";
import { ProviderConnection, type ProviderSocket } from "../../src/coordinator/session/connection.ts";
import { IdentityMemory } from "../../src/coordinator/session/identity-memory.ts";
import type { SessionDeps } from "../../src/coordinator/session/session-deps.ts";
import { openStore } from "../../src/coordinator/store/open-store.ts";
import { FRAME_KIND, sealFrame } from "../../src/protocol/frames.ts";
import { decodeCoordinatorMessage, encodeMessage, type ProviderMessage } from "../../src/protocol/messages.ts";
import { encodeEvents } from "../../src/protocol/payloads.ts";
import { AesGcmFrameCipher } from "../../src/trust/frame-cipher.ts";
import { signStatement } from "../../src/trust/statements.ts";
import {
  createDice,
  flipBit,
  fuzzSeed,
  mutateText,
  MUTATIONS,
  residentBytes,
  spliceBytes,
  Tally,
  truncateBytes,
  type Dice,
  type Mutation,
} from "../support/fuzz.ts";
import { scriptedModel, scriptedSigner } from "../support/scripted-provider.ts";
import { tempDir } from "../support/temp-dir.ts";

const ROUNDS = 10_000;
const GROWTH_BYTES_MAX = 96 * 1024 * 1024;
const ATTEMPT_ID = "00000000-0000-4000-8000-000000000001";

const setUp = async (path: string) => {
  const clock = systemClock();
  const random = systemRandom();
  const faults: string[] = [];
  const log = createLog({
    clock,
    level: "debug",
    format: "json",
    write: (line) => {
      // Anything that is not a Fault is a bug of ours that hostile input has found.
      if (line.includes('"fault":"internal"') || line.includes("assertion failed")) faults.push(line);
    },
  });
  const registry = new ProviderRegistry({ notify: () => undefined });
  const store = openStore({ clock }, path);
  const signer = await scriptedSigner();
  const deps: SessionDeps = {
    clock,
    random,
    ids: createIds(random),
    log,
    signer,
    store,
    registry,
    memory: new IdentityMemory(clock),
    options: COORDINATOR_DEFAULTS,
    replace: () => undefined,
  };
  return { deps, faults, store, registry, clock, random, log };
};

const HARDWARE = {
  machine_model: "m",
  chip_name: "c",
  chip_family: "M4",
  chip_tier: "Pro",
  memory_gb: 1,
  memory_available_gb: 1,
  cpu_cores: { total: 1, performance: 1, efficiency: 0 },
  gpu_cores: 0,
  memory_bandwidth_gbs: 1,
} as const;
const K_PUBLIC = Buffer.alloc(32, 9).toString("base64");

/** As `waitFor`, but without a pause between looks: ten thousand sessions are opened here. */
const until = async <T>(what: string, probe: () => T | null | undefined | false): Promise<T> => {
  const untilMs = performance.now() + 10_000;
  for (;;) {
    const value = probe();
    if (value !== null && value !== undefined && value !== false) return value;
    if (performance.now() > untilMs) throw new Error(`timed out waiting for ${what}`);
    await new Promise((resolve) => setImmediate(resolve));
  }
};

/** A connection that has proven itself, on a socket that only counts. */
const openLive = async (deps: SessionDeps, signer: Awaited<ReturnType<typeof scriptedSigner>>) => {
  const sent: string[] = [];
  const live = { closed: false };
  const socket: ProviderSocket = {
    sendText: (text) => (sent.push(text), text.length),
    sendBinary: (bytes) => bytes.length,
    getBufferedAmount: () => 0,
    close: () => void (live.closed = true),
    terminate: () => void (live.closed = true),
    ping: () => undefined,
  };
  const connection = new ProviderConnection(deps, socket, { tokenId: null, models: null });
  const model = scriptedModel("m");
  connection.onText(
    encodeMessage({
      type: "register",
      protocol: 1,
      version: "1",
      capabilities: [],
      identity_key: signer.publicKey,
      k_public: K_PUBLIC,
      hardware: HARDWARE,
      models: [model],
    }),
  );
  const nonce = await until("the welcome", () => {
    if (sent.length === 0) return null;
    const decoded = sent
      .map((text) => decodeCoordinatorMessage(text))
      .find((one) => one.ok && one.message.type === "welcome");
    return decoded?.ok && decoded.message.type === "welcome" ? decoded.message.nonce : null;
  });
  const signed = await signStatement(signer, {
    nonce,
    identity_key: signer.publicKey,
    k_public: K_PUBLIC,
    hardware: HARDWARE,
    os: { platform: "linux", version: "1", arch: "x64" },
    posture: {
      sip_enabled: null,
      secure_boot_enabled: null,
      authenticated_root_enabled: null,
      core_dumps_disabled: null,
    },
    build_sha256: null,
    native_sha256: null,
    models: [{ id: model.id, manifest_sha256: model.manifest_sha256 }],
    issued_at: new Date().toISOString(),
  });
  connection.onText(encodeMessage({ type: "attestation_response", ...signed }));
  await until("the admission", () => connection.phase === "serving");
  return { connection, live, sent };
};

const CONTROL: readonly ProviderMessage[] = [
  {
    type: "heartbeat",
    seq: 1,
    status: "serving",
    stats: { requests_served: 3, tokens_generated: 400 },
    system_metrics: { memory_pressure: 0.5, cpu_usage: 0.25, thermal_state: "fair" },
    backend_capacity: {
      slots: [
        {
          model: "m",
          state: "running",
          num_running: 1,
          num_waiting: 0,
          active_tokens: 5,
          max_tokens_potential: 9,
          max_concurrency: 4,
        },
      ],
      gpu_memory_active_gb: 1,
      gpu_memory_peak_gb: 2,
      gpu_memory_cache_gb: 0,
      total_memory_gb: 16,
    },
  },
  { type: "inference_accepted", request_id: ATTEMPT_ID },
  { type: "inference_error", request_id: ATTEMPT_ID, failure_code: "capacity", reason: "capacity_busy", status: 503 },
  { type: "attestation_response", statement: "a.b", signature: "c" },
  { type: "unsupported", unsupported_type: "load_model" },
];

const expectEveryClass = (tally: Tally): void => {
  for (const kind of MUTATIONS)
    expect({ kind, seen: tally.count(kind, "accepted") + tally.count(kind, "rejected") > 0 }).toEqual({
      kind,
      seen: true,
    });
  expect(tally.total("accepted")).toBeGreaterThan(0);
  expect(tally.total("rejected")).toBeGreaterThan(0);
};

describe("fuzz", () => {
  test("10,000 mutated control messages on a live session", async () => {
    await using dir = await tempDir();
    const { deps, faults, store } = await setUp(`${dir.path}/coordinator.db`);
    const signer = await scriptedSigner();
    const seed = fuzzSeed();
    const dice = createDice(seed);
    const tally = new Tally();
    let session = await openLive(deps, signer);
    const before = residentBytes();
    for (let round = 0; round < ROUNDS; round += 1) {
      const kind = dice.pick(MUTATIONS);
      const text = encodeMessage(dice.pick(CONTROL));
      session.connection.onText(mutateText(dice, kind, text, encodeMessage(dice.pick(CONTROL))));
      tally.add(kind, session.live.closed ? "rejected" : "accepted");
      session.sent.length = 0;
      if (!session.live.closed) continue;
      session.connection.onClose(1002);
      session = await openLive(deps, signer);
    }
    tally.print("control messages", seed);
    expect(faults).toEqual([]);
    expectEveryClass(tally);
    expect(residentBytes() - before).toBeLessThan(GROWTH_BYTES_MAX);
    session.connection.onClose(1000);
    expect(deps.registry.size).toBe(0);
    store.close();
  }, 120_000);

  test("10,000 mutated data frames on a live session", async () => {
    await using dir = await tempDir();
    const { deps, faults, store } = await setUp(`${dir.path}/coordinator.db`);
    const seed = fuzzSeed();
    const dice = createDice(seed);
    const tally = new Tally();
    const signer = await scriptedSigner();
    const attach = async () => {
      // Forgets, because a violation keeps its identity out.
      const session = await openLive({ ...deps, memory: new IdentityMemory(deps.clock) }, signer);
      const provider = [...deps.registry.candidates()][0]!;
      return { ...session, provider };
    };
    let session = await attach();
    const before = residentBytes();
    for (let round = 0; round < ROUNDS; round += 1) {
      const kind = dice.pick(MUTATIONS);
      const key = deps.random.bytes(32);
      const { provider } = session;
      const attempt = new RunningAttempt(
        { clock: deps.clock, sendCancel: () => undefined, onEnd: () => void provider.attempts.delete(ATTEMPT_ID) },
        {
          id: ATTEMPT_ID,
          keys: {
            request: new AesGcmFrameCipher({ key: deps.random.bytes(32), role: "seal" }),
            response: new AesGcmFrameCipher({ key: Uint8Array.from(key), role: "open" }),
            wipe: () => undefined,
          },
          deadlineMs: deps.clock.monotonicMs() + 60_000,
          silenceMs: 60_000,
        },
      );
      provider.attempts.set(ATTEMPT_ID, attempt);
      attempt.onSent();
      const cipher = new AesGcmFrameCipher({ key, role: "seal" });
      const frame = (): Uint8Array =>
        sealFrame(cipher, FRAME_KIND.chunk, ATTEMPT_ID, encodeEvents([{ type: "text", text: "hello" }]));
      const [first, second] = [frame(), frame()];
      const bytes = mutateFrame(dice, kind, first, second);
      const untouched = Buffer.compare(bytes, first) === 0;
      session.connection.onBinary(bytes);
      tally.add(kind, session.live.closed ? "rejected" : "accepted");
      // Nothing but the sealed bytes themselves is ever delivered.
      expect(attempt.phase === "streaming").toBe(untouched);
      attempt.fail(new Fault("provider_failed", "over"));
      if (!session.live.closed) continue;
      session.connection.onClose(1002);
      session = await attach();
    }
    tally.print("data frames", seed);
    expect(faults).toEqual([]);
    expectEveryClass(tally);
    expect(residentBytes() - before).toBeLessThan(GROWTH_BYTES_MAX);
    session.connection.onClose(1000);
    store.close();
  }, 120_000);

  test("10,000 mutated bodies over HTTP", async () => {
    await using dir = await tempDir();
    const { faults, store, registry, clock, random, log } = await setUp(`${dir.path}/coordinator.db`);
    const ids = createIds(random);
    const { key } = createKey({ clock, ids, store }, { name: "fuzz" });
    const options = COORDINATOR_DEFAULTS;
    const dispatch = {
      clock,
      random,
      ids,
      log,
      registry,
      room: new WaitingRoom(clock),
      pick: pickLeastLoaded,
      options,
    };
    const http = { clock, ids, log, store, gate: new DrainGate(), options, dispatch, version: "1" };
    const bodies = [
      JSON.stringify({
        model: "m",
        messages: [{ role: "user", content: "hello" }],
        stream: true,
        stop: ["x"],
        seed: 1,
      }),
      JSON.stringify({
        model: "m",
        messages: [
          { role: "system", content: "be kind" },
          { role: "user", content: [{ type: "text", text: "hi" }] },
        ],
        max_tokens: 5,
        temperature: 0.5,
        tools: [{ type: "function", function: { name: "f", parameters: { type: "object", properties: {} } } }],
      }),
    ];
    const seed = fuzzSeed();
    const dice = createDice(seed);
    const tally = new Tally();
    const before = residentBytes();
    for (let round = 0; round < ROUNDS; round += 1) {
      const kind = dice.pick(MUTATIONS);
      const request = new Request("http://x/v1/chat/completions", {
        method: "POST",
        headers: { authorization: `Bearer ${key}` },
        body: mutateText(dice, kind, dice.pick(bodies), dice.pick(bodies)),
      });
      const response = await answer(http, request, { ip: "x", limitSilence: () => undefined }, () => undefined);
      // Decoded requests end at the catalog, which is empty here.
      tally.add(kind, response?.status === 404 ? "accepted" : "rejected");
      expect([400, 404, 413, 415]).toContain(response?.status ?? 0);
    }
    tally.print("HTTP bodies", seed);
    expect(faults).toEqual([]);
    expectEveryClass(tally);
    expect(http.gate.inFlight).toBe(0);
    expect(residentBytes() - before).toBeLessThan(GROWTH_BYTES_MAX);
    store.close();
  }, 120_000);
});

const mutateFrame = (dice: Dice, kind: Mutation, frame: Uint8Array, other: Uint8Array): Uint8Array => {
  switch (kind) {
    case "flip":
      return flipBit(dice, frame);
    case "truncate":
      return truncateBytes(dice, frame);
    case "splice":
      return spliceBytes(dice, frame, other);
    case "retype": {
      const copy = Uint8Array.from(frame);
      copy[dice.below(2)] = dice.below(256);
      return copy;
    }
    case "huge": {
      const copy = new Uint8Array(frame.length + (dice.below(2) === 0 ? 0 : 200_000));
      copy.set(frame);
      copy.fill(255, 18, 22);
      return copy;
    }
  }
};
