/** Statements and welcomes: what a good one proves, and the reason each bad one gets. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { join } from "node:path";
import type { CoordinatorMessage } from "../../src/protocol/messages.ts";
import { openSoftwareSigner, type Signer } from "../../src/trust/signer.ts";
import {
  judgePosture,
  signStatement,
  verifyStatement,
  type SignedStatement,
  type Statement,
  type StatementExpectation,
} from "../../src/trust/statements.ts";
import { signWelcome, verifyWelcome } from "../../src/trust/welcome.ts";
import { tempDir, type TempDir } from "../support/temp-dir.ts";
import { MODEL, NONCE, SHA_256, statementOf } from "./_samples.ts";
import { rejectionOf } from "../support/rejection.ts";

const NOW_MS = Date.parse("2026-06-22T12:00:30Z");
let dir: TempDir;
let signer: Signer;
let stranger: Signer;

beforeAll(async () => {
  dir = await tempDir();
  signer = await openSoftwareSigner(join(dir.path, "one.key"));
  stranger = await openSoftwareSigner(join(dir.path, "two.key"));
});
afterAll(() => dir[Symbol.asyncDispose]());

const expectation = (changes: Partial<StatementExpectation> = {}): StatementExpectation => ({
  nonce: NONCE,
  identityKey: signer.publicKey,
  expectedKPublic: statementOf(signer.publicKey).k_public,
  nowMs: NOW_MS,
  expectedModels: [{ id: MODEL, manifest_sha256: SHA_256 }],
  ...changes,
});
const sign = (changes: Partial<Statement> = {}): Promise<SignedStatement> =>
  signStatement(signer, statementOf(signer.publicKey, changes));
const posture = (changes: Partial<Statement["posture"]>): Statement["posture"] => ({
  ...statementOf("").posture,
  ...changes,
});

describe("a good statement", () => {
  test("makes a software key self-signed, with what was signed at hand", async () => {
    const verdict = await verifyStatement(await sign(), expectation());
    expect(verdict).toEqual({
      outcome: "verified",
      trustLevel: "self_signed",
      reason: "verified",
      seen: null,
      expected: null,
      command: null,
      clockSkewMs: null,
      statement: statementOf(signer.publicKey),
    });
  });

  test("only warns about a clock that is wrong", async () => {
    const late = await verifyStatement(await sign({ issued_at: "2026-06-22T11:00:00Z" }), expectation());
    expect(late).toMatchObject({ outcome: "verified", clockSkewMs: -3_630_000 });
    const early = await verifyStatement(await sign({ issued_at: "2031-01-01T00:00:00Z" }), expectation());
    expect(early.outcome).toBe("verified");
    expect(early.clockSkewMs).toBeGreaterThan(0);
  });

  test("announces a new encryption key once rotation is allowed", async () => {
    const k_public = Buffer.alloc(32, 99).toString("base64");
    const verdict = await verifyStatement(await sign({ k_public }), expectation({ expectedKPublic: null }));
    expect(verdict).toMatchObject({ outcome: "verified", statement: { k_public } });
  });
});

describe("a statement fails", () => {
  test("when it answers another nonce", async () => {
    const verdict = await verifyStatement(await sign({ nonce: Buffer.alloc(32, 8).toString("base64") }), expectation());
    expect(verdict).toMatchObject({ outcome: "failed", trustLevel: "none", reason: "nonce_mismatch" });
    expect(verdict.seen).not.toBe(verdict.expected);
    expect(verdict.command).toBeString();
  });

  test("when it names another identity or encryption key", async () => {
    const foreign = await signStatement(signer, statementOf(stranger.publicKey));
    expect(await verifyStatement(foreign, expectation())).toMatchObject({ reason: "identity_mismatch" });
    const k_public = Buffer.alloc(32, 99).toString("base64");
    expect(await verifyStatement(await sign({ k_public }), expectation())).toMatchObject({ reason: "key_mismatch" });
  });

  test("when a registered model is absent or has another hash", async () => {
    const absent = await verifyStatement(await sign({ models: [] }), expectation());
    expect(absent).toMatchObject({ outcome: "failed", reason: "model_hash_mismatch", seen: `${MODEL} absent` });
    const models = [{ id: MODEL, manifest_sha256: "00".repeat(32) }];
    const other = await verifyStatement(await sign({ models }), expectation());
    expect(other).toMatchObject({ reason: "model_hash_mismatch", seen: `${MODEL} ${"0".repeat(16)}…` });
  });

  test("when another key signed it", async () => {
    const signed = await signStatement(stranger, statementOf(signer.publicKey));
    expect(await verifyStatement(signed, expectation())).toMatchObject({
      outcome: "failed",
      reason: "signature_invalid",
      statement: null,
    });
  });

  test("when any character of it was changed", async () => {
    const signed = await sign();
    for (const part of ["statement", "signature"] as const)
      for (const at of [0, 5, Math.floor(signed[part].length / 2)]) {
        const letter = signed[part][at] === "A" ? "B" : "A";
        const changed = { ...signed, [part]: signed[part].slice(0, at) + letter + signed[part].slice(at + 1) };
        expect((await verifyStatement(changed, expectation())).reason).toBe("signature_invalid");
      }
  });

  test("when it was signed as something else", async () => {
    const jws = await signer.signJws("darkbloom-welcome+jws", JSON.stringify(statementOf(signer.publicKey)));
    const at = jws.lastIndexOf(".");
    const signed = { statement: jws.slice(0, at), signature: jws.slice(at + 1) };
    expect(await verifyStatement(signed, expectation())).toMatchObject({ reason: "signature_invalid" });
  });

  test.each([
    ["no algorithm", { alg: "none", typ: "darkbloom-statement+jws" }],
    ["a symmetric algorithm", { alg: "HS256", typ: "darkbloom-statement+jws" }],
    ["a critical extension", { alg: "ES256", typ: "darkbloom-statement+jws", crit: ["b64"], b64: false }],
  ])("when its header claims %s", async (_name, header) => {
    const signed = await sign();
    const statement = `${Buffer.from(JSON.stringify(header)).toString("base64url")}.${signed.statement.split(".")[1]}`;
    for (const signature of [signed.signature, "", "AAAA"])
      expect(await verifyStatement({ statement, signature }, expectation())).toMatchObject({
        reason: "signature_invalid",
      });
  });

  test("when it is signed and still no statement", async () => {
    for (const payload of [
      "",
      "hello",
      "null",
      "[]",
      "{}",
      JSON.stringify({ ...statementOf(signer.publicKey), posture: 1 }),
    ]) {
      const jws = await signer.signJws("darkbloom-statement+jws", payload);
      const at = jws.lastIndexOf(".");
      const signed = { statement: jws.slice(0, at), signature: jws.slice(at + 1) };
      expect((await verifyStatement(signed, expectation())).reason).toBeOneOf([
        "statement_malformed",
        "signature_invalid",
      ]);
    }
  });

  test("when the registered key is none", async () => {
    for (const identityKey of ["", "B", `B${"A".repeat(86)}`, `${signer.publicKey}=`])
      expect((await verifyStatement(await sign(), expectation({ identityKey }))).reason).toBe("signature_invalid");
  });
});

describe("posture", () => {
  test("an explicit false untrusts at once, on any system", async () => {
    const verdict = await verifyStatement(
      await sign({ posture: posture({ core_dumps_disabled: false }) }),
      expectation(),
    );
    expect(verdict).toMatchObject({
      outcome: "untrusted",
      trustLevel: "none",
      reason: "posture_false",
      seen: "core_dumps_disabled=false",
      expected: "core_dumps_disabled=true",
    });
    expect(judgePosture(posture({ sip_enabled: false }), "darwin")).toMatchObject({
      ok: false,
      reason: "posture_false",
    });
  });

  test("null is allowed, and true where the protection exists", () => {
    const none = {
      sip_enabled: null,
      secure_boot_enabled: null,
      authenticated_root_enabled: null,
      core_dumps_disabled: null,
    };
    for (const platform of ["darwin", "linux", "other"] as const) expect(judgePosture(none, platform).ok).toBe(true);
    expect(judgePosture(posture({ sip_enabled: true, secure_boot_enabled: true }), "darwin").ok).toBe(true);
  });

  test("a system that claims Apple's protections is not believed", () => {
    for (const name of ["sip_enabled", "secure_boot_enabled", "authenticated_root_enabled"] as const)
      expect(judgePosture(posture({ [name]: true }), "linux")).toEqual({
        ok: false,
        reason: "posture_implausible",
        seen: `${name}=true`,
        expected: `${name}=null`,
      });
  });
});

describe("a welcome", () => {
  const message = {
    type: "welcome",
    connection_id: "conn_1",
    resume_token: "resume_1",
    heartbeat_ms: 5000,
    nonce: NONCE,
    limits: { control_frame_bytes_max: 1, data_frame_bytes_max: 2, attestation_reply_ms: 3 },
    signature: "",
  } satisfies Extract<CoordinatorMessage, { type: "welcome" }>;
  const { type: _type, signature: _signature, ...fields } = message;
  const audience = { identityKey: "provider key", kPublic: "k" };
  const refused = { code: "provider_rejected", reason: "coordinator_key_mismatch" };

  test("verifies for the provider it was made for, by the pinned coordinator", async () => {
    const signature = await signWelcome(signer, fields, audience);
    for (const fingerprint of [signer.fingerprint, null])
      expect(await verifyWelcome({ signature, fields, audience, fingerprint })).toBe(signer.publicKey);
    expect(
      await rejectionOf(verifyWelcome({ signature, fields, audience, fingerprint: stranger.fingerprint })),
    ).toMatchObject(refused);
  });

  test("may hold more than this version reads", async () => {
    const grown = { ...fields, future: 1, limits: { ...fields.limits, future: 2 } };
    const signature = await signWelcome(signer, grown, audience);
    expect(await verifyWelcome({ signature, fields, audience, fingerprint: null })).toBe(signer.publicKey);
  });

  test("is refused for other fields, another provider or another process of it", async () => {
    const signature = await signWelcome(signer, fields, audience);
    const verify = (changes: object): Promise<string> =>
      verifyWelcome({ signature, fields, audience, fingerprint: signer.fingerprint, ...changes });
    for (const changes of [
      { fields: { ...fields, nonce: Buffer.alloc(32).toString("base64") } },
      { fields: { ...fields, limits: { ...fields.limits, attestation_reply_ms: 4 } } },
      { fields: { ...fields, extra: "unsigned" } },
      { audience: { ...audience, identityKey: "another" } },
      { audience: { ...audience, kPublic: "another" } },
      { signature: "" },
      { signature: "a.b.c" },
      { signature: `${signature}A` },
    ])
      expect(await rejectionOf(verify(changes))).toMatchObject(refused);
  });

  test("is refused when its key is not the one that signed", async () => {
    const claims = {
      coordinator_key: signer.publicKey,
      audience: { identity_key: "provider key", k_public: "k" },
      welcome: fields,
    };
    const signature = await stranger.signJws("darkbloom-welcome+jws", JSON.stringify(claims));
    expect(
      await rejectionOf(verifyWelcome({ signature, fields, audience, fingerprint: signer.fingerprint })),
    ).toMatchObject(refused);
  });
});
