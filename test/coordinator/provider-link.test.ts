/** Providers over real sockets: who is let in, what is refused, what misbehaviour leads to. */
import { describe, expect, test } from "bun:test";
import { openAdmin } from "../../src/coordinator/admin/client.ts";
import { createJoinToken, revokeJoinToken } from "../../src/coordinator/accounts/join-tokens.ts";
import { FRAME_KIND } from "../../src/protocol/frames.ts";
import { encodeEvents } from "../../src/protocol/payloads.ts";
import { verifyWelcome } from "../../src/trust/welcome.ts";
import { createIds, systemRandom } from "../../src/core/ids.ts";
import { systemClock } from "../../src/core/clock.ts";
import { createFakeClock } from "../support/fake-clock.ts";
import {
  ScriptedProvider,
  scriptedModel,
  scriptedSigner,
  type ScriptedJob,
  type ScriptedOptions,
} from "../support/scripted-provider.ts";
import { tempDir } from "../support/temp-dir.ts";
import { waitFor } from "../support/wait.ts";
import { contentOf, errorOf, readSse, startHarness, waitForLine, type Harness } from "./harness.ts";

const connect = (harness: Harness, options: Partial<ScriptedOptions> = {}): Promise<ScriptedProvider> =>
  ScriptedProvider.connect({ url: harness.coordinator.providerUrl, token: harness.token, ...options });

const closing = (provider: ScriptedProvider) => waitFor("the close", () => provider.closed);

const accountDeps = (harness: Harness) => ({
  clock: systemClock(),
  ids: createIds(systemRandom()),
  store: harness.store,
});

describe("upgrade", () => {
  test("is refused without a token, with a wrong, revoked or malformed one, before any socket opens", async () => {
    await using harness = await startHarness();
    const { token, id } = createJoinToken(accountDeps(harness), {}, {});
    revokeJoinToken(accountDeps(harness), id);
    for (const wrong of [undefined, "nonsense", `jt-db-${"0".repeat(64)}`, token, harness.key]) {
      const { token: _known, ...options } = { url: harness.coordinator.providerUrl, token: "" };
      await using provider = await ScriptedProvider.connect(
        wrong === undefined ? options : { ...options, token: wrong },
      );
      expect(provider.closed?.code).toBe(401);
    }
    expect(await (await harness.get("/health")).json()).toMatchObject({ providers: 0 });
  });

  test("a join token revoked through the admin socket ends the connections it let in, and only those", async () => {
    await using dir = await tempDir();
    await using harness = await startHarness({ dataDir: dir.path });
    using admin = openAdmin(accountDeps(harness), dir.path);
    const { token, id } = await admin.createJoinToken({});
    await using leaving = await connect(harness, { token });
    await using stays = await connect(harness);
    expect(leaving.open).toBe(true);
    await admin.revokeJoinToken(id);
    expect(await closing(leaving)).toEqual({ code: 1008, reason: "token_revoked" });
    expect((await connect(harness, { token })).closed?.code).toBe(401);
    expect(stays.open).toBe(true);
  });

  test("anonymous providers are let in by configuration only", async () => {
    await using harness = await startHarness({ anonymousProviders: true });
    await using provider = await ScriptedProvider.start({ url: harness.coordinator.providerUrl });
    expect(provider.trust?.status).toBe("online");
  });

  test("plain requests and other subprotocols get an HTTP answer", async () => {
    await using harness = await startHarness();
    const plain = await harness.get("/ws/provider", { headers: { authorization: `Bearer ${harness.token}` } });
    expect(plain.status).toBe(400);
    expect((await errorOf(plain)).message).toContain("darkbloom.v1");
  });

  test("connections are limited per token and per address, and a closed one makes room", async () => {
    await using harness = await startHarness({ connectionsPerTokenMax: 1, connectionsPerIpMax: 2 });
    const first = await harness.provider();
    const second = await connect(harness);
    expect(second.closed?.code).toBe(429);
    const { token } = createJoinToken(accountDeps(harness), {}, {});
    await using third = await connect(harness, { token });
    expect(third.open).toBe(true);
    const { token: another } = createJoinToken(accountDeps(harness), {}, {});
    expect((await connect(harness, { token: another })).closed?.code).toBe(429);
    first.close();
    await waitForLine(harness, "provider_disconnected");
    await using fourth = await connect(harness, { token: another });
    expect(fourth.open).toBe(true);
  });
});

describe("registration", () => {
  test("the welcome is signed by the coordinator for this provider", async () => {
    await using harness = await startHarness();
    const provider = await harness.provider();
    const welcome = provider.last("welcome")!;
    const { type: _type, signature, ...fields } = welcome;
    const audience = { identityKey: provider.signer.publicKey, kPublic: provider.kPublic };
    expect(await verifyWelcome({ signature, fields, audience, fingerprint: null })).toMatch(/^B/);
    expect(welcome.heartbeat_ms).toBe(5_000);
  });

  test("a statement signed by another key, over another nonce or another K is refused, and no model is served", async () => {
    await using harness = await startHarness();
    const cases: [Partial<ScriptedOptions>, string][] = [
      [
        { changeStatement: (statement) => ({ ...statement, nonce: Buffer.alloc(32).toString("base64") }) },
        "nonce_mismatch",
      ],
      [
        { changeStatement: (statement) => ({ ...statement, k_public: Buffer.alloc(32, 1).toString("base64") }) },
        "key_mismatch",
      ],
      [{ changeStatement: (statement) => ({ ...statement, models: [] }) }, "model_hash_mismatch"],
      [
        {
          changeStatement: (statement) => ({
            ...statement,
            posture: { ...statement.posture, core_dumps_disabled: false },
          }),
        },
        "posture_false",
      ],
    ];
    const stranger = await scriptedSigner();
    cases.push([
      { changeRegistration: (registration) => ({ ...registration, identity_key: stranger.publicKey }) },
      "signature_invalid",
    ]);
    for (const [options, reason] of cases) {
      const provider = await connect(harness, options);
      expect((await closing(provider)).code).toBe(1008);
      expect(provider.last("trust_status")).toMatchObject({ status: "untrusted", reason, command: expect.any(String) });
      expect(provider.last("reject")?.code).toBe("attestation_failed");
    }
    expect((await harness.chat()).status).toBe(404);
  });

  test("too little trust: connected, told why, never routed to", async () => {
    await using harness = await startHarness({ minTrust: "hardware" });
    const provider = await harness.provider();
    expect(provider.trust).toMatchObject({
      status: "waiting",
      reason: "trust_too_low",
      seen: "self_signed",
      expected: "hardware",
    });
    expect((await harness.chat()).status).toBe(404);
    expect(harness.store.modelPins.find("test-model")).toBeNull();
  });

  test("a second hash under a known id is refused, and the pin survives a restart of the pinner", async () => {
    await using harness = await startHarness();
    const first = await harness.provider();
    first.close();
    await waitForLine(harness, "provider_disconnected");
    const other = [scriptedModel("test-model", { manifest_sha256: "b".repeat(64) }), scriptedModel("other")];
    const second = await harness.provider({ models: other });
    expect(second.trust).toMatchObject({
      status: "online",
      reason: "model_hash_mismatch",
      seen: "b".repeat(64),
      expected: "a".repeat(64),
    });
    expect((await harness.chat()).status).toBe(503);
    expect((await harness.chat({ model: "other" })).status).toBe(200);
    const third = await harness.provider({ models: other.slice(0, 1) });
    expect(third.trust).toMatchObject({ status: "untrusted", reason: "model_hash_mismatch" });
  });

  test("a join token may narrow the models", async () => {
    await using harness = await startHarness();
    const { token } = createJoinToken(accountDeps(harness), { models: ["allowed"] }, {});
    const provider = await harness.provider({ token, models: [scriptedModel("allowed"), scriptedModel("test-model")] });
    expect(provider.trust).toMatchObject({
      status: "online",
      reason: "model_not_allowed",
      seen: "test-model",
      expected: "allowed",
    });
    expect((await harness.chat({ model: "allowed" })).status).toBe(200);
    expect((await harness.chat()).status).toBe(404);
  });

  test("a newer connection of the same identity replaces the older, only after its verification", async () => {
    await using harness = await startHarness();
    const signer = await scriptedSigner();
    const older = await harness.provider({ signer });
    await using impostor = await connect(harness, { signer, answerChallenges: false });
    await waitFor("the welcome", () => impostor.last("welcome"));
    expect(older.open).toBe(true);
    const newer = await harness.provider({ signer });
    expect(await closing(older)).toEqual({ code: 1000, reason: "replaced" });
    expect((await harness.chat()).status).toBe(200);
    expect(newer.jobs.length).toBe(1);
    expect(await (await harness.get("/health")).json()).toMatchObject({ providers: 1 });
  });

  test("a resume token is honoured for the identity it was made for", async () => {
    await using harness = await startHarness();
    const signer = await scriptedSigner();
    const first = await harness.provider({ signer });
    const resume_token = first.last("welcome")!.resume_token;
    first.close();
    await waitForLine(harness, "provider_disconnected");
    const withToken = {
      changeRegistration: (registration: Parameters<NonNullable<ScriptedOptions["changeRegistration"]>>[0]) => ({
        ...registration,
        resume_token,
      }),
    };
    await harness.provider(withToken);
    await harness.provider({ signer, ...withToken });
    await harness.provider({ signer, ...withToken });
    const resumed = harness.lines
      .filter((line) => line.includes("provider_admitted"))
      .map((line) => (JSON.parse(line) as { resumed: boolean }).resumed);
    expect(resumed).toEqual([false, false, true, false]);
  });

  test("who says nothing is cut after ten seconds, who proves nothing after thirty", async () => {
    const clock = createFakeClock();
    await using harness = await startHarness({}, { clock });
    await using mute = await connect(harness, { register: false });
    await using unproven = await connect(harness, { answerChallenges: false });
    await waitFor("the welcome", () => unproven.last("welcome"));
    await clock.advance(10_000);
    await closing(mute);
    expect(mute.last("reject")?.code).toBe("register_timeout");
    expect(unproven.open).toBe(true);
    await clock.advance(20_000);
    await closing(unproven);
    expect(unproven.last("reject")?.code).toBe("attestation_timeout");
  });

  test("is challenged again, and stale proof takes no work", async () => {
    const clock = createFakeClock();
    await using harness = await startHarness(
      { challengeMs: 20_000, challengeFreshMs: 15_000, peerSilenceMs: 60_000 },
      { clock },
    );
    const provider = await harness.provider();
    await clock.advance(15_001);
    expect((await harness.chat()).status).toBe(503);
    await provider.sync();
    await clock.advance(5_000);
    await waitFor(
      "the renewed status",
      () => provider.messages.filter(({ type }) => type === "trust_status").length === 2,
    );
    expect((await harness.chat()).status).toBe(200);
  });

  test("a silent peer is dropped after thirty seconds", async () => {
    const clock = createFakeClock();
    await using harness = await startHarness({}, { clock });
    const provider = await harness.provider();
    provider.pause();
    await clock.advance(31_000);
    await waitForLine(harness, "provider_silent");
    await waitForLine(harness, "provider_disconnected");
    expect(await (await harness.get("/health")).json()).toMatchObject({ providers: 0 });
  });
});

describe("misbehaviour", () => {
  test.each<[string, (provider: ScriptedProvider) => void]>([
    ["a second register", (provider) => provider.register()],
    ["text that is no JSON", (provider) => provider.sendText("{")],
    ["a known type with wrong fields", (provider) => provider.sendText('{"type":"heartbeat","seq":"x"}')],
    ["a data frame that is none", (provider) => provider.sendBytes(new Uint8Array(3))],
    ["a control frame over its limit", (provider) => provider.sendText(`{"type":"${"x".repeat(2_000_000)}"}`)],
    ["a data frame over its limit", (provider) => provider.sendBytes(new Uint8Array(11 * 1024 * 1024))],
  ])("%s closes the connection", async (_name, misbehave) => {
    await using harness = await startHarness();
    const provider = await harness.provider();
    misbehave(provider);
    expect([1002, 1006, 1009]).toContain((await closing(provider)).code);
    expect((await harness.chat()).status).toBe(503);
  });

  test.each([
    ["one byte per character", "x".repeat(1_100_000)],
    ["three bytes per character", "€".repeat(400_000)],
  ])("a control frame too large, %s, is told so", async (_name, text) => {
    await using harness = await startHarness();
    const provider = await harness.provider();
    provider.sendText(JSON.stringify({ type: "heartbeat", text }));
    expect((await closing(provider)).code).toBe(1009);
  });

  test("a provider that loses its trust is told to stop what it runs", async () => {
    await using harness = await startHarness({ challengeMs: 1 });
    let running = false;
    const provider = await harness.provider({
      onRequest: (job) => {
        job.accept();
        running = true;
      },
      changeStatement: (statement) =>
        running ? { ...statement, posture: { ...statement.posture, core_dumps_disabled: false } } : statement,
    });
    const response = await harness.chat();
    expect(response.status).toBe(502);
    expect(provider.jobs.length).toBe(1);
    await waitFor("the cancel", () => provider.cancels.includes(provider.jobs[0]?.id ?? ""));
  });

  test("an unknown type is answered with unsupported, and life goes on", async () => {
    await using harness = await startHarness();
    const provider = await harness.provider();
    provider.sendText('{"type":"models_update","models":[]}');
    await waitFor("the answer", () => provider.last("unsupported"));
    expect(provider.last("unsupported")).toEqual({ type: "unsupported", unsupported_type: "models_update" });
    provider.sendBytes(new Uint8Array(64).fill(1).fill(2, 1, 2));
    expect((await harness.chat()).status).toBe(200);
  });

  const tampering: [string, (job: ScriptedJob, send: (bytes: Uint8Array) => void) => void][] = [
    [
      "a flipped bit",
      (job, send) => {
        const frame = job.seal(FRAME_KIND.chunk, encodeEvents([{ type: "text", text: "x" }]));
        frame[frame.length - 20]! ^= 1;
        send(frame);
      },
    ],
    [
      "a replayed frame",
      (job, send) => {
        const frame = job.seal(FRAME_KIND.chunk, encodeEvents([{ type: "text", text: "" }]));
        send(frame);
        send(frame);
      },
    ],
    [
      "a skipped frame",
      (job, send) => {
        job.seal(FRAME_KIND.chunk, encodeEvents([{ type: "text", text: "lost" }]));
        send(job.seal(FRAME_KIND.chunk, encodeEvents([{ type: "text", text: "x" }])));
      },
    ],
    [
      "a chunk relabelled as terminal",
      (job, send) => {
        const frame = job.seal(FRAME_KIND.chunk, encodeEvents([{ type: "text", text: "x" }]));
        frame[1] = FRAME_KIND.terminal;
        send(frame);
      },
    ],
    [
      "events that are none",
      (job, send) => send(job.seal(FRAME_KIND.chunk, new TextEncoder().encode('[{"type":"secret"}]'))),
    ],
    ["a request frame", (job, send) => send(job.seal(FRAME_KIND.request, new TextEncoder().encode("{}")))],
  ];

  test.each(tampering)(
    "%s: the request fails or goes elsewhere, the provider is untrusted and kept out",
    async (_name, tamper) => {
      await using harness = await startHarness();
      const signer = await scriptedSigner();
      const provider = await harness.provider({
        signer,
        onRequest: (job) => {
          job.accept();
          tamper(job, (bytes) => provider.sendBytes(bytes));
        },
      });
      const response = await harness.chat();
      expect(response.status).toBe(502);
      expect(await errorOf(response)).toMatchObject({ type: "provider_error" });
      expect((await closing(provider)).code).toBe(1008);
      expect(provider.trust).toMatchObject({
        status: "untrusted",
        reason: "data_violation",
        retry_at: expect.any(String),
      });
      const again = await connect(harness, { signer });
      await closing(again);
      expect(again.last("reject")).toMatchObject({ code: "identity_not_allowed" });
      expect(again.last("reject")?.retry_after_ms).toBeGreaterThan(500_000);
      expect(harness.lines.join("")).not.toContain("secret");
    },
  );

  test("a truncated answer is noticed by the terminal's count", async () => {
    await using harness = await startHarness();
    await harness.provider({
      onRequest: (job) => {
        job.text("one");
        job.chunks += 1;
        job.finish();
      },
    });
    const { data } = await readSse(await harness.chat({ stream: true }));
    expect(contentOf(data)).toBe("one");
    expect(data.at(-1)).toMatchObject({ error: { type: "provider_error" } });
  });

  test("a provider that stops reading loses its connection, not the coordinator its memory", async () => {
    await using harness = await startHarness({ firstContentBaseMs: 60_000 });
    const provider = await harness.provider({ concurrency: 64 });
    provider.pause();
    const content = "x".repeat(4_000_000);
    const answers = Array.from({ length: 16 }, () => harness.chat({ messages: [{ role: "user", content }] }));
    const refused = await Promise.race(answers);
    expect([429, 502, 503]).toContain(refused.status);
    provider.terminate();
    for (const answer of await Promise.all(answers)) expect(answer.status).toBeGreaterThanOrEqual(429);
    expect(harness.coordinator.health().inflight).toBe(0);
  }, 20_000);
});

describe("drain", () => {
  test("a draining provider gets no new work, finishes what it has, and is acknowledged after the last terminal", async () => {
    await using harness = await startHarness();
    const held: ScriptedJob[] = [];
    const provider = await harness.provider({ onRequest: (job) => void held.push(job) });
    const answer = harness.chat();
    const job = await waitFor("the request", () => held[0]);
    const drain_id = crypto.randomUUID();
    provider.send({ type: "provider_drain", drain_id });
    await provider.sync();
    expect((await harness.chat()).status).toBe(503);
    expect(provider.last("provider_drain_ack")).toBeNull();
    job.text("done");
    job.finish();
    expect((await answer).status).toBe(200);
    await waitFor("the ack", () => provider.last("provider_drain_ack")?.drain_id === drain_id);
  });
});
