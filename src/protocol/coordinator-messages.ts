/** Schemas of the control messages a coordinator sends: verdicts, challenges, requests. */
import { z } from "zod";
import {
  base64Key32Field,
  clampedCountField,
  countField,
  foldedField,
  lineField,
  modelIdField,
  uuidField,
} from "../core/fields.ts";
import { REQUEST_BYTES_MAX, REQUEST_PART_BYTES_MAX } from "../core/limits.ts";
import { TRUST_LEVELS, TRUST_REASONS, TRUST_STATUSES, type TrustReason } from "../core/trust.ts";
import { jwsField, tokenField, unsupportedSchema } from "./_fields.ts";

const REJECT_CODES = [
  "protocol_unsupported",
  "version_too_old",
  "register_timeout",
  "attestation_timeout",
  "attestation_failed",
  "trust_too_low",
  "identity_not_allowed",
  "model_not_allowed",
  "model_hash_mismatch",
  "token_revoked",
  "too_many_connections",
  "draining",
  "internal",
  "other",
] as const;
export type RejectCode = (typeof REJECT_CODES)[number];

const PRIORITIES = ["interactive", "batch"] as const;

const welcomeSchema = z.object({
  type: z.literal("welcome"),
  connection_id: tokenField,
  /** Secret; restores learned state of the same identity key within `resumeTokenMs` of a lost connection. */
  resume_token: tokenField,
  heartbeat_ms: z.number().int().min(100).max(600_000),
  /** Base64 of 32 random bytes; the provider's first statement answers it. */
  nonce: base64Key32Field,
  /** What the coordinator takes from this provider. */
  limits: z.object({
    control_frame_bytes_max: countField,
    data_frame_bytes_max: countField,
    attestation_reply_ms: countField,
  }),
  /** Compact JWS `darkbloom-welcome+jws` of the coordinator's identity key over all of the above (src/trust/welcome.ts). */
  signature: jwsField,
});

const rejectSchema = z.object({
  type: z.literal("reject"),
  code: foldedField(REJECT_CODES, "other"),
  message: lineField(500),
  retry_after_ms: clampedCountField(86_400_000).optional(),
});

const attestationChallengeSchema = z.object({ type: z.literal("attestation_challenge"), nonce: base64Key32Field });

const trustStatusSchema = z.object({
  type: z.literal("trust_status"),
  trust_level: foldedField(TRUST_LEVELS, "none"),
  status: foldedField(TRUST_STATUSES, "other"),
  reason: foldedField(Object.keys(TRUST_REASONS) as TrustReason[], "other"),
  /** What the coordinator saw and what it expected, as short text; null where nothing was compared. */
  seen: lineField(200).nullable(),
  expected: lineField(200).nullable(),
  /** RFC 3339 time of the next attempt; null when none is planned. */
  retry_at: z.iso.datetime().max(40).nullable(),
  /** One command for the provider's owner to type. */
  command: lineField(200).nullable(),
});

const inferenceRequestSchema = z
  .object({
    type: z.literal("inference_request"),
    /** UUID text of the attempt id, new for each retry. */
    request_id: uuidField,
    /** The model id the provider advertised; part of the sealing info. */
    model: modelIdField,
    /** Base64 of HPKE's encapsulated key. */
    enc: base64Key32Field,
    /** Data frames that follow, each of at most REQUEST_PART_BYTES_MAX plaintext bytes. */
    parts: z.number().int().min(1),
    /** Plaintext bytes of all parts together. */
    bytes: z.number().int().min(1).max(REQUEST_BYTES_MAX),
    max_tokens: z.number().int().min(1).max(10_000_000),
    /** Time left for first content, counted by the provider from the frame's receipt. */
    first_content_budget_ms: clampedCountField(86_400_000),
    /** Pseudonym of account and model, authored by the coordinator. */
    cache_scope: tokenField.optional(),
    priority: foldedField(PRIORITIES, "interactive"),
  })
  .refine((request) => request.parts === Math.ceil(request.bytes / REQUEST_PART_BYTES_MAX), { path: ["parts"] });

const cancelSchema = z.object({ type: z.literal("cancel"), request_id: uuidField });

/** Sent after the terminals of everything that was running. */
const providerDrainAckSchema = z.object({ type: z.literal("provider_drain_ack"), drain_id: tokenField });

export const COORDINATOR_SCHEMAS = {
  welcome: welcomeSchema,
  reject: rejectSchema,
  attestation_challenge: attestationChallengeSchema,
  trust_status: trustStatusSchema,
  inference_request: inferenceRequestSchema,
  cancel: cancelSchema,
  provider_drain_ack: providerDrainAckSchema,
  unsupported: unsupportedSchema,
} as const;
