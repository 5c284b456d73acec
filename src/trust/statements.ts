/** Statements: what a provider signs about itself for each challenge, and what they prove. */
import { z } from "zod";
import { canonicalJson } from "../core/canonical-json.ts";
import { base64Key32Field, foldedField, lineField, modelIdField, sha256Field } from "../core/fields.ts";
import { hardwareSchema } from "../core/hardware.ts";
import { TRUST_REASONS, type TrustLevel, type TrustReason } from "../core/trust.ts";
import { splitJws, verifyJws } from "./jws.ts";
import type { Signer } from "./signer.ts";

const TYPE = "darkbloom-statement+jws";
const CLOCK_SKEW_MS_MAX = 120_000;
const MODELS_MAX = 256;

/** `null` = does not exist on this system. */
const triState = z.boolean().nullable();

/** Protections of the system. The first three are Apple's, so other systems send null for them. */
const postureSchema = z.object({
  sip_enabled: triState,
  secure_boot_enabled: triState,
  authenticated_root_enabled: triState,
  /** The process can leave no core dump. */
  core_dumps_disabled: triState,
});
export type Posture = z.infer<typeof postureSchema>;

const APPLE_ONLY = ["sip_enabled", "secure_boot_enabled", "authenticated_root_enabled"] as const;

export const statementSchema = z.object({
  /** The challenge it answers. */
  nonce: base64Key32Field,
  identity_key: z.string().max(128),
  k_public: base64Key32Field,
  hardware: hardwareSchema,
  os: z.object({
    platform: foldedField(["darwin", "linux", "other"], "other"),
    version: lineField(128),
    arch: lineField(32),
  }),
  posture: postureSchema,
  /** SHA-256 of the executable; null when it runs from source. */
  build_sha256: sha256Field.nullable(),
  /** SHA-256 over the native library; null when none is loaded. */
  native_sha256: sha256Field.nullable(),
  models: z.array(z.object({ id: modelIdField, manifest_sha256: sha256Field })).max(MODELS_MAX),
  /** RFC 3339. The nonce makes it fresh; the clock only helps a person. */
  issued_at: z.iso.datetime().max(40),
});
export type Statement = z.infer<typeof statementSchema>;

/** A compact JWS in the two fields of `attestation_response`; joined by a dot they are the JWS. */
export interface SignedStatement {
  /** Protected header and payload, as signed. */
  readonly statement: string;
  readonly signature: string;
}

export interface StatementExpectation {
  /** Base64; the caller forgets it on first use. */
  readonly nonce: string;
  /** The key this connection registered with. */
  readonly identityKey: string;
  /** The key the provider registered with; null once it may rotate, since a verified statement is what announces a new one. */
  readonly expectedKPublic: string | null;
  readonly nowMs: number;
  /** Models the provider registered with; each must be in the statement under the same hash. */
  readonly expectedModels?: readonly { readonly id: string; readonly manifest_sha256: string }[];
}

export interface StatementVerdict {
  /** `failed` counts towards CHALLENGE_FAILURES_MAX; `untrusted` acts at once. */
  readonly outcome: "verified" | "failed" | "untrusted";
  readonly trustLevel: TrustLevel;
  readonly reason: TrustReason;
  /** Short texts for `trust_status`; null where nothing was compared. */
  readonly seen: string | null;
  readonly expected: string | null;
  readonly command: string | null;
  /** How far the provider's clock is off when that is worth a warning; positive = ahead. */
  readonly clockSkewMs: number | null;
  /** What was signed; null unless the signature is good. */
  readonly statement: Statement | null;
}

export interface PostureVerdict {
  readonly ok: boolean;
  readonly reason: TrustReason;
  readonly seen: string | null;
  readonly expected: string | null;
}

export const signStatement = async (signer: Signer, statement: Statement): Promise<SignedStatement> =>
  splitJws(await signer.signJws(TYPE, canonicalJson(statement)));

/** Only an explicit `false` untrusts; a system that claims what it cannot have does, too. */
export const judgePosture = (posture: Posture, platform: Statement["os"]["platform"]): PostureVerdict => {
  for (const [name, value] of Object.entries(posture))
    if (value === false) return { ok: false, reason: "posture_false", seen: `${name}=false`, expected: `${name}=true` };
  if (platform !== "darwin")
    for (const name of APPLE_ONLY)
      if (posture[name] === true)
        return { ok: false, reason: "posture_implausible", seen: `${name}=true`, expected: `${name}=null` };
  return { ok: true, reason: "verified", seen: null, expected: null };
};

/** Never throws for what a provider sent: every failure is a verdict with its reason. */
export const verifyStatement = async (
  signed: SignedStatement,
  expectation: StatementExpectation,
): Promise<StatementVerdict> => {
  const jws = `${signed.statement}.${signed.signature}`;
  const payload = await verifyJws({ type: TYPE, jws, identityKey: expectation.identityKey });
  if (payload === null) return verdict("failed", "signature_invalid");
  const statement = parseStatement(payload);
  if (statement === null) return verdict("failed", "statement_malformed");
  const mismatch = findMismatch(statement, expectation);
  if (mismatch !== null) return { ...verdict("failed", mismatch.reason), ...mismatch, statement };
  const { ok, ...posture } = judgePosture(statement.posture, statement.os.platform);
  if (!ok) return { ...verdict("untrusted", posture.reason), ...posture, statement };
  const skewMs = Date.parse(statement.issued_at) - expectation.nowMs;
  return {
    ...verdict("verified", "verified"),
    // Nothing in a statement proves hardware: that level needs evidence from the vendor.
    trustLevel: "self_signed",
    clockSkewMs: Math.abs(skewMs) > CLOCK_SKEW_MS_MAX ? skewMs : null,
    statement,
  };
};

const verdict = (outcome: StatementVerdict["outcome"], reason: TrustReason): StatementVerdict => ({
  outcome,
  trustLevel: "none",
  reason,
  seen: null,
  expected: null,
  command: TRUST_REASONS[reason].command,
  clockSkewMs: null,
  statement: null,
});

const parseStatement = (payload: string): Statement | null => {
  try {
    const result = statementSchema.safeParse(JSON.parse(payload));
    return result.success ? result.data : null;
  } catch {
    // Signed, but not JSON: unreadable like every other wrong shape.
    return null;
  }
};

interface Mismatch {
  readonly reason: TrustReason;
  readonly seen: string;
  readonly expected: string;
}

const findMismatch = (statement: Statement, expectation: StatementExpectation): Mismatch | null => {
  const compare = (reason: TrustReason, seen: string, expected: string): Mismatch | null =>
    seen === expected ? null : { reason, seen: shorten(seen), expected: shorten(expected) };
  const { expectedKPublic } = expectation;
  return (
    compare("nonce_mismatch", statement.nonce, expectation.nonce) ??
    compare("identity_mismatch", statement.identity_key, expectation.identityKey) ??
    (expectedKPublic === null ? null : compare("key_mismatch", statement.k_public, expectedKPublic)) ??
    findModelMismatch(statement, expectation.expectedModels ?? [])
  );
};

const findModelMismatch = (
  statement: Statement,
  expectedModels: NonNullable<StatementExpectation["expectedModels"]>,
): Mismatch | null => {
  const hashes = new Map(statement.models.map((model) => [model.id, model.manifest_sha256]));
  for (const { id, manifest_sha256: expected } of expectedModels) {
    const seen = hashes.get(id);
    if (seen !== expected)
      return {
        reason: "model_hash_mismatch",
        seen: `${id} ${seen === undefined ? "absent" : shorten(seen)}`.slice(0, 200),
        expected: `${id} ${shorten(expected)}`.slice(0, 200),
      };
  }
  return null;
};

/** Enough of a key or digest to tell two apart. */
const shorten = (text: string): string => (text.length > 16 ? `${text.slice(0, 16)}…` : text);
