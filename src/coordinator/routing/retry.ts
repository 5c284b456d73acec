/** What a failed attempt means: which fault it is, whether another provider may be tried, and what the consumer hears at the end. */
import { Fault, type FaultCode, type WireFailureCode } from "../../core/fault.ts";
import type { ProviderMessage } from "../../protocol/messages.ts";

type InferenceError = Extract<ProviderMessage, { type: "inference_error" }>;

const RETRY_AFTER_MS = 2_000;

/** Fixed texts: nothing a provider wrote reaches a consumer (protocol-trust §2.8). */
const WIRE_FAULTS: Record<WireFailureCode, { readonly code: FaultCode; readonly message: string }> = {
  invalid_request: { code: "bad_request", message: "invalid inference request" },
  invalid_media: { code: "bad_request", message: "invalid media input" },
  media_too_large: { code: "payload_too_large", message: "media input exceeds size limit" },
  unsupported_media: { code: "unsupported_media", message: "unsupported media input" },
  template_render: { code: "template_failed", message: "model template could not render the request" },
  model_unavailable: { code: "model_unavailable", message: "model not loaded" },
  capacity: { code: "capacity", message: "request rejected: provider capacity unavailable" },
  cancelled: { code: "provider_failed", message: "the provider cancelled the request" },
  encryption_failure: { code: "encryption_failed", message: "encrypted inference transport failed" },
  generation_failure: { code: "provider_failed", message: "inference generation failed" },
  internal_failure: { code: "provider_failed", message: "provider internal error" },
};

const CONTEXT_MESSAGE = "the prompt and the requested output do not fit the model's context";

/** A provider's report of a failed attempt as a Fault, rebuilt from its closed values. */
export const toAttemptFault = (error: InferenceError): Fault => {
  const { code, message } = WIRE_FAULTS[error.failure_code];
  const options = {
    ...(error.reason === undefined ? {} : { reason: error.reason }),
    ...(error.feasible_after_ms === undefined ? {} : { retryAfterMs: error.feasible_after_ms }),
  };
  if (error.failure_code === "capacity" && error.reason === "draining")
    return new Fault("draining", "the provider is draining", options);
  return new Fault(code, error.reason === "request_exceeds_context" ? CONTEXT_MESSAGE : message, options);
};

/** `final`: every provider would say the same. `free`: try elsewhere without spending an attempt. */
export type Verdict = "final" | "retry" | "free";

/** By class, never by text. Only this coordinator makes `cancelled` and `consumer_too_slow`, for a consumer that went away. */
export const judgeAttempt = (fault: Fault): Verdict => {
  switch (fault.code) {
    case "bad_request":
    case "payload_too_large":
    case "unsupported_media":
    case "template_failed":
    case "cancelled":
    case "consumer_too_slow":
    case "internal":
      return "final";
    case "draining":
      return "free";
    default:
      return "retry";
  }
};

/** What the consumer is told when nobody is left to try (routing §4.6). */
export const toExhaustedFault = (last: Fault, attempts: number): Fault => {
  const after = `after ${attempts} ${attempts === 1 ? "attempt" : "attempts"}`;
  switch (last.code) {
    case "capacity":
    case "draining":
    case "queue_full":
      return new Fault("queue_full", `no provider had room for the request ${after}: ${last.message}`, {
        reason: "dispatch_exhausted",
        retryAfterMs: Math.max(RETRY_AFTER_MS, last.retryAfterMs ?? 0),
        cause: last,
      });
    case "model_unavailable":
    case "model_crashed":
    case "memory_short":
      return new Fault("model_unavailable", `no provider could run the model ${after}: ${last.message}`, {
        reason: "dispatch_exhausted",
        retryAfterMs: RETRY_AFTER_MS,
        cause: last,
      });
    case "timeout":
      return new Fault("timeout", `${last.message} (${after})`, {
        ...(last.reason === undefined ? {} : { reason: last.reason }),
        cause: last,
      });
    default:
      return new Fault("provider_failed", `no provider completed the request ${after}: ${last.message}`, {
        reason: "dispatch_exhausted",
        cause: last,
      });
  }
};

/** No attempt was made: nobody connected may serve the model. */
export const toUnservedFault = (model: string, reason: "no_provider" | "tools_unsupported"): Fault =>
  reason === "tools_unsupported"
    ? new Fault("model_unavailable", `no provider of model "${model}" can take tools right now`, {
        reason: "model_capability_unsupported",
        param: "tools",
        retryAfterMs: RETRY_AFTER_MS,
      })
    : new Fault("model_unavailable", `model "${model}" has no available build right now`, {
        param: "model",
        retryAfterMs: RETRY_AFTER_MS,
      });

/** Everybody who may serve the model stayed full until the deadline, or too many wait already. */
export const toBusyFault = (waiting: number): Fault =>
  new Fault("queue_full", "all providers are busy, retry later", {
    reason: "machine_busy",
    retryAfterMs: Math.min(30_000, Math.max(RETRY_AFTER_MS, waiting * 3_000)),
  });
