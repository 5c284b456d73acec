/** The one error class of the project and the closed table of everything that can go wrong in the world. */

interface FaultKind {
  /** HTTP status a consumer sees. */
  readonly status: number;
  /** `error.type` string of the HTTP envelope (api-billing-store §1.1). */
  readonly type: string;
  /** Exit code of the command line: 64 wrong flags, ids or versions; 1 anything else. */
  readonly exit: 1 | 64 | 130;
  /** True when the same request may succeed elsewhere or later. */
  readonly retryable: boolean;
  /** `failure_code` on the provider wire (protocol-trust §2.8). */
  readonly wire: WireFailureCode;
}

/** Closed vocabulary of `inference_error.failure_code` (protocol-trust §2.8). */
export const WIRE_FAILURE_CODES = [
  "invalid_request",
  "invalid_media",
  "media_too_large",
  "unsupported_media",
  "template_render",
  "model_unavailable",
  "capacity",
  "cancelled",
  "encryption_failure",
  "generation_failure",
  "internal_failure",
] as const;
export type WireFailureCode = (typeof WIRE_FAILURE_CODES)[number];

const kind = <const K extends FaultKind>(value: K): K => value;

export const FAULTS = {
  // What a consumer did.
  bad_request: kind({ status: 400, type: "invalid_request_error", exit: 1, retryable: false, wire: "invalid_request" }),
  unauthenticated: kind({
    status: 401,
    type: "authentication_error",
    exit: 1,
    retryable: false,
    wire: "internal_failure",
  }),
  forbidden: kind({ status: 403, type: "forbidden", exit: 1, retryable: false, wire: "internal_failure" }),
  not_found: kind({ status: 404, type: "not_found", exit: 1, retryable: false, wire: "internal_failure" }),
  endpoint_unknown: kind({
    status: 404,
    type: "invalid_request_error",
    exit: 1,
    retryable: false,
    wire: "internal_failure",
  }),
  model_not_found: kind({ status: 404, type: "model_not_found", exit: 1, retryable: false, wire: "model_unavailable" }),
  method_not_allowed: kind({
    status: 405,
    type: "invalid_request_error",
    exit: 1,
    retryable: false,
    wire: "internal_failure",
  }),
  payload_too_large: kind({
    status: 413,
    type: "invalid_request_error",
    exit: 1,
    retryable: false,
    wire: "media_too_large",
  }),
  unsupported_media: kind({
    status: 415,
    type: "invalid_request_error",
    exit: 1,
    retryable: false,
    wire: "unsupported_media",
  }),
  template_failed: kind({
    status: 422,
    type: "invalid_request_error",
    exit: 1,
    retryable: false,
    wire: "template_render",
  }),
  // What the network of providers could not do.
  draining: kind({ status: 429, type: "rate_limit_exceeded", exit: 1, retryable: true, wire: "capacity" }),
  queue_full: kind({ status: 429, type: "rate_limit_exceeded", exit: 1, retryable: true, wire: "capacity" }),
  capacity: kind({ status: 503, type: "service_unavailable", exit: 1, retryable: true, wire: "capacity" }),
  model_unavailable: kind({
    status: 503,
    type: "model_unavailable",
    exit: 1,
    retryable: true,
    wire: "model_unavailable",
  }),
  provider_failed: kind({ status: 502, type: "provider_error", exit: 1, retryable: true, wire: "generation_failure" }),
  encryption_failed: kind({
    status: 502,
    type: "provider_error",
    exit: 1,
    retryable: true,
    wire: "encryption_failure",
  }),
  timeout: kind({ status: 504, type: "timeout", exit: 1, retryable: true, wire: "generation_failure" }),
  cancelled: kind({ status: 499, type: "cancelled", exit: 1, retryable: false, wire: "cancelled" }),
  consumer_too_slow: kind({ status: 499, type: "cancelled", exit: 1, retryable: false, wire: "cancelled" }),
  // The coordinator ⇄ provider link.
  protocol_error: kind({ status: 502, type: "provider_error", exit: 1, retryable: true, wire: "internal_failure" }),
  provider_rejected: kind({ status: 403, type: "forbidden", exit: 1, retryable: false, wire: "internal_failure" }),
  coordinator_unreachable: kind({
    status: 502,
    type: "provider_error",
    exit: 1,
    retryable: true,
    wire: "internal_failure",
  }),
  // The machine the program runs on.
  usage: kind({ status: 400, type: "invalid_request_error", exit: 64, retryable: false, wire: "invalid_request" }),
  config_invalid: kind({ status: 500, type: "internal_error", exit: 1, retryable: false, wire: "internal_failure" }),
  file_missing: kind({ status: 500, type: "internal_error", exit: 1, retryable: false, wire: "internal_failure" }),
  model_invalid: kind({ status: 500, type: "internal_error", exit: 1, retryable: false, wire: "model_unavailable" }),
  model_crashed: kind({ status: 503, type: "model_unavailable", exit: 1, retryable: true, wire: "model_unavailable" }),
  memory_short: kind({ status: 503, type: "model_unavailable", exit: 1, retryable: true, wire: "capacity" }),
  native_missing: kind({ status: 500, type: "internal_error", exit: 1, retryable: false, wire: "internal_failure" }),
  compiler_missing: kind({ status: 500, type: "internal_error", exit: 1, retryable: false, wire: "internal_failure" }),
  system_too_old: kind({ status: 500, type: "internal_error", exit: 1, retryable: false, wire: "internal_failure" }),
  native_failed: kind({ status: 500, type: "internal_error", exit: 1, retryable: true, wire: "internal_failure" }),
  disposed: kind({ status: 500, type: "internal_error", exit: 1, retryable: false, wire: "internal_failure" }),
  engine_failed: kind({ status: 500, type: "provider_error", exit: 1, retryable: true, wire: "generation_failure" }),
  store_failed: kind({ status: 500, type: "internal_error", exit: 1, retryable: true, wire: "internal_failure" }),
  already_running: kind({ status: 500, type: "internal_error", exit: 1, retryable: false, wire: "internal_failure" }),
  address_in_use: kind({ status: 500, type: "internal_error", exit: 1, retryable: false, wire: "internal_failure" }),
  io_failed: kind({ status: 500, type: "internal_error", exit: 1, retryable: true, wire: "internal_failure" }),
  checks_failed: kind({
    status: 500,
    type: "internal_error",
    exit: 1,
    retryable: false,
    wire: "internal_failure",
  }),
  interrupted: kind({ status: 499, type: "cancelled", exit: 130, retryable: false, wire: "cancelled" }),
  internal: kind({ status: 500, type: "internal_error", exit: 1, retryable: false, wire: "internal_failure" }),
} as const;

export type FaultCode = keyof typeof FAULTS;

export interface FaultOptions {
  /** What the reader should type or change next; shown by the command line. */
  readonly hint?: string;
  /** Request field at fault, for the HTTP envelope. */
  readonly param?: string;
  /** Closed machine word that refines the code: `error_reason` on the wire, `error.code` over HTTP. */
  readonly reason?: string;
  /** Status that replaces the table's, for codes a provider passed on. */
  readonly status?: number;
  /** How long a caller should wait before trying again. */
  readonly retryAfterMs?: number;
  readonly cause?: unknown;
}

/** A failure of the world, as opposed to a bug. The message is shown to people and never holds prompt or completion text. */
export class Fault extends Error {
  readonly code: FaultCode;
  readonly hint: string | undefined;
  readonly param: string | undefined;
  readonly reason: string | undefined;
  readonly status: number;
  readonly retryAfterMs: number | undefined;

  constructor(code: FaultCode, message: string, options: FaultOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = "Fault";
    this.code = code;
    this.hint = options.hint;
    this.param = options.param;
    this.reason = options.reason;
    this.status = options.status ?? FAULTS[code].status;
    this.retryAfterMs = options.retryAfterMs;
  }

  get retryable(): boolean {
    return FAULTS[this.code].retryable;
  }
}

/** What the file system refuses to anybody, whatever was being written. */
const SYSTEM_ERRORS: ReadonlyMap<unknown, readonly [message: string, hint: string]> = new Map([
  ["ENOSPC", ["the disk is full", "free disk space"]],
  ["EDQUOT", ["the disk quota is used up", "free disk space, or ask for a larger quota"]],
  ["EROFS", ["the file system is read-only", "use a folder that may be written"]],
  ["EACCES", ["a file or folder may not be used by this user", "check its owner and permissions"]],
  ["EMFILE", ["too many files are open", "raise the limit: ulimit -n"]],
] as const);

/** The path goes into the hint alone, which only the owner of the machine reads. */
const toSystemFault = (thrown: unknown): Fault | null => {
  if (!(thrown instanceof Error) || !("code" in thrown)) return null;
  const known = SYSTEM_ERRORS.get(thrown.code);
  if (known === undefined) return null;
  const [message, hint] = known;
  // Of a copy, the second path is the one that could not be written.
  const { path, dest } = thrown as NodeJS.ErrnoException & { readonly dest?: string };
  const place = dest ?? path;
  return new Fault("io_failed", message, { hint: place === undefined ? hint : `${hint} (${place})`, cause: thrown });
};

/** Anything thrown that is neither a Fault nor the system's refusal is our bug: keep the cause for the log, hide it from callers. */
export const toFault = (thrown: unknown): Fault => {
  if (thrown instanceof Fault) return thrown;
  return toSystemFault(thrown) ?? new Fault("internal", "internal error", { cause: thrown });
};

/** States what must hold if the program is right. A failure is a bug, so it is no Fault. */
export function assert(condition: unknown, message: string): asserts condition {
  if (!condition) throw new Error(`assertion failed: ${message}`);
}
