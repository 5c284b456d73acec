/** Field schemas that several control messages share. */
import { z } from "zod";
import { countField, lineField, modelIdField, sha256Field } from "../core/fields.ts";

/** Closed values of `inference_error.reason` (protocol-trust §2.8), plus those of sealing. */
const WIRE_REASONS: ReadonlySet<string> = new Set([
  "jinja_channel_tags",
  "jinja_null_bridge",
  "jinja_template",
  "model_load",
  "capacity_timeout",
  "queue_full",
  "token_budget_exhausted",
  "request_exceeds_context",
  "request_exceeds_node",
  "request_exceeds_node_budget",
  "request_exceeds_batch_token_budget",
  "capacity_busy",
  "deadline_unreachable",
  "draining",
  "cancelled",
  "client_error",
  "tool_noncompliance",
  "replayed",
  "open_failed",
  "sequence_mismatch",
]);

/** A word outside the vocabulary is dropped, never passed on: it could be prose that quotes a prompt. */
export const reasonField = z
  .string()
  .max(64)
  .transform((word): string | undefined => (WIRE_REASONS.has(word) ? word : undefined));

export const usageField = z.object({
  prompt_tokens: countField,
  completion_tokens: countField,
  reasoning_tokens: countField,
  cached_tokens: countField,
});

/** A provider's public signing key: base64url of the 65-byte uncompressed P-256 point (src/trust/signer.ts). */
export const identityKeyField = z.string().regex(/^B[A-Za-z0-9_-]{86}$/);
/** One part of a compact JWS or a whole one. */
export const jwsField = z
  .string()
  .min(1)
  .max(256 * 1024)
  .regex(/^[A-Za-z0-9_.-]+$/);
/** Opaque secret or id made by us. */
export const tokenField = z
  .string()
  .min(1)
  .max(256)
  .regex(/^[A-Za-z0-9_.-]+$/);

/** What a provider offers under one id. */
export const advertisedModelField = z.object({
  id: modelIdField,
  manifest_sha256: sha256Field,
  size_bytes: countField,
  quantization: lineField(32).nullable(),
  context: countField.min(1),
  vision: z.boolean(),
  tools: z.boolean(),
  template_render_ok: z.boolean(),
});

/** A message name; anything else in `type` is malformed rather than unsupported. */
export const MESSAGE_TYPE = /^[a-z][a-z0-9_]{0,63}$/;

/** Answer to a message this side does not know; the key cannot be `type`, which names the answer itself. */
export const unsupportedSchema = z.object({
  type: z.literal("unsupported"),
  unsupported_type: z.string().regex(MESSAGE_TYPE),
});
