/** Renders a Fault for its three readers: an HTTP consumer, the other end of the provider link, a person at a terminal. */
import { FAULTS, type Fault, type FaultCode, type WireFailureCode } from "./fault.ts";

/** Body of every HTTP error (api-billing-store §1.1); all four keys are always there. */
export interface HttpErrorBody {
  readonly error: {
    readonly type: string;
    readonly message: string;
    readonly code: string;
    readonly param: string | null;
  };
}

export const toHttpBody = (fault: Fault): HttpErrorBody => {
  const { type } = FAULTS[fault.code];
  return { error: { type, message: fault.message, code: fault.reason ?? type, param: fault.param ?? null } };
};

/** Whole seconds for `Retry-After`, at least 1 and at most 60; null when the fault names no wait. */
export const retryAfterSeconds = (fault: Fault): number | null =>
  fault.retryAfterMs === undefined ? null : Math.min(60, Math.max(1, Math.ceil(fault.retryAfterMs / 1000)));

/** Body of an SSE error event after first content: only `timeout` and `provider_error` exist there (api-billing-store §2.8). */
export const toStreamErrorBody = (fault: Fault): HttpErrorBody => {
  const type = fault.code === "timeout" ? "timeout" : "provider_error";
  const message = fault.code === "internal" ? "internal error" : fault.message;
  return { error: { type, message, code: fault.reason ?? type, param: null } };
};

/** The closed values a provider may send about a failed attempt; no prose, because prose can quote a prompt. */
export interface WireError {
  readonly failure_code: WireFailureCode;
  readonly reason?: string;
  readonly status: number;
}

export const toWireError = (fault: Fault): WireError => ({
  failure_code: FAULTS[fault.code].wire,
  ...(fault.reason === undefined ? {} : { reason: fault.reason }),
  status: fault.status,
});

/** Last `--json` line of a failing command. */
export interface CliErrorEvent {
  readonly event: "error";
  readonly code: FaultCode;
  readonly message: string;
  readonly hint: string | null;
}

export const toCliEvent = (fault: Fault): CliErrorEvent => ({
  event: "error",
  code: fault.code,
  message: fault.message,
  hint: fault.hint ?? null,
});

/** What happened and why on the first line, what to type next on the second. */
export const toCliText = (fault: Fault): string =>
  fault.hint === undefined ? `error: ${fault.message}` : `error: ${fault.message}\n  → ${fault.hint}`;
