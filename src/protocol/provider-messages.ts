/** Schemas of the control messages a provider sends: registration, proof, state, answers about attempts. */
import { z } from "zod";
import { base64Key32Field, clampedCountField, countField, foldedField, lineField, uuidField } from "../core/fields.ts";
import { WIRE_FAILURE_CODES } from "../core/fault.ts";
import { hardwareSchema } from "../core/hardware.ts";
import {
  advertisedModelField,
  identityKeyField,
  jwsField,
  reasonField,
  tokenField,
  unsupportedSchema,
  usageField,
} from "./_fields.ts";
import { heartbeatSchema } from "./heartbeat.ts";

const MODELS_MAX = 256;
const CAPABILITIES_MAX = 64;

const registerSchema = z.object({
  type: z.literal("register"),
  /** Any version parses, so that the coordinator can answer with a `reject` that says which one it speaks. */
  protocol: countField,
  version: lineField(64),
  capabilities: z.array(lineField(64)).max(CAPABILITIES_MAX),
  identity_key: identityKeyField,
  /** Base64 of the provider's X25519 key of this process. */
  k_public: base64Key32Field,
  hardware: hardwareSchema,
  models: z.array(advertisedModelField).max(MODELS_MAX),
  private_only: z.boolean().optional(),
  resume_token: tokenField.optional(),
});

/** `statement.signature` is a compact JWS: `statement` is its first two parts, `signature` the third. */
const attestationResponseSchema = z.object({
  type: z.literal("attestation_response"),
  statement: jwsField,
  signature: jwsField,
});

/** The lease is held: protocol.md, Attempt life cycle. */
const inferenceAcceptedSchema = z.object({ type: z.literal("inference_accepted"), request_id: uuidField });

const inferenceErrorSchema = z.object({
  type: z.literal("inference_error"),
  request_id: uuidField,
  failure_code: foldedField(WIRE_FAILURE_CODES, "generation_failure"),
  reason: reasonField.optional(),
  /** HTTP-like. */
  status: z.number().int().min(400).max(599),
  /** What was generated before the failure; never billed. */
  usage: usageField.optional(),
  feasible_after_ms: clampedCountField(3_600_000).optional(),
});

const providerDrainSchema = z.object({ type: z.literal("provider_drain"), drain_id: tokenField });

export const PROVIDER_SCHEMAS = {
  register: registerSchema,
  attestation_response: attestationResponseSchema,
  heartbeat: heartbeatSchema,
  inference_accepted: inferenceAcceptedSchema,
  inference_error: inferenceErrorSchema,
  provider_drain: providerDrainSchema,
  unsupported: unsupportedSchema,
} as const;
