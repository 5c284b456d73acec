/**
 * The life of the provider's connection as a pure step function; `link.ts` performs what it asks for.
 *
 *   idle ─start─► connecting ─opened─► registering ─welcome─► attesting ─trusted─► serving ─drain─► draining
 *                   ▲   │                   │                   │   ▲──distrusted────┘ │               │
 *                   │   └───────────────────┴──lost, refused, ──┴──rejected, deadline──┘               │
 *                   └───tick── backoff ◄────────────────┘                         stop (any phase) ──► closed
 */
import { Fault } from "../../core/fault.ts";
import { CLOSE_CODES } from "../../protocol/close-codes.ts";
import type { RejectCode } from "../../protocol/coordinator-messages.ts";
import { TIMERS } from "../../protocol/timers.ts";

/** What survives a connection: how often in a row it did not work. */
interface Memory {
  readonly failures: number;
}

export type LinkState =
  | ({ readonly phase: "idle" } & Memory)
  | ({ readonly phase: "connecting"; readonly untilMs: number } & Memory)
  | ({ readonly phase: "registering"; readonly untilMs: number } & Memory)
  /** No deadline after the coordinator has judged us: it keeps challenging and may change its mind. */
  | ({ readonly phase: "attesting"; readonly untilMs: number | null } & Memory)
  /** No deadline: pings end it. */
  | ({ readonly phase: "serving"; readonly sinceMs: number } & Memory)
  /** No deadline: whoever drains bounds it and then stops. */
  | ({ readonly phase: "draining"; readonly sinceMs: number; readonly drainId: string } & Memory)
  | ({ readonly phase: "backoff"; readonly untilMs: number } & Memory)
  | { readonly phase: "closed" };

export type LinkPhase = LinkState["phase"];

export type LinkEvent =
  | { readonly type: "start" }
  | { readonly type: "opened" }
  /** Its signature is verified. */
  | { readonly type: "welcome"; readonly nonce: string }
  | { readonly type: "judged"; readonly online: boolean }
  | { readonly type: "rejected"; readonly code: RejectCode; readonly retryAfterMs?: number }
  /** The upgrade was answered with an HTTP status other than 101. */
  | { readonly type: "refused"; readonly status: number }
  | { readonly type: "lost"; readonly code: number }
  | { readonly type: "silent" }
  | { readonly type: "suspended" }
  /** Something that cannot be repaired on this connection, found by the shell. */
  | { readonly type: "broken"; readonly fault: Fault }
  | { readonly type: "tick" }
  | { readonly type: "drain"; readonly drainId: string }
  | { readonly type: "stop" };

export type LinkEffect =
  | { readonly type: "connect" }
  | { readonly type: "send_register" }
  | { readonly type: "send_statement"; readonly nonce: string }
  | { readonly type: "send_drain"; readonly drainId: string }
  | { readonly type: "hang_up"; readonly code: number }
  | { readonly type: "report"; readonly fault: Fault };

export interface StepContext {
  readonly nowMs: number;
  /** Uniform in [0, 1): the jitter. */
  readonly fraction: number;
}

export type LinkStep = readonly [LinkState, readonly LinkEffect[]];

export const INITIAL_LINK: LinkState = { phase: "idle", failures: 0 };

/** Time the TCP, TLS and upgrade handshakes get together. */
export const CONNECT_MS = 10_000;
/** From `register` to `welcome`: the coordinator only looks up a token. */
export const WELCOME_MS = 10_000;
/** From our statement to the first verdict. */
export const VERDICT_MS = TIMERS.attestationReplyMs;
/** Doublings after which the window no longer grows; keeps the power finite. */
const FAILURES_COUNTED_MAX = 16;

/** Full jitter over a window of 1 s doubling to 30 s: a crowd that lost its coordinator does not come back at one moment. */
export const backoffMs = (failures: number, fraction: number): number =>
  fraction * Math.min(TIMERS.reconnectMaxMs, TIMERS.reconnectMinMs * 2 ** Math.min(failures, FAILURES_COUNTED_MAX));

/** For answers that a retry will not change soon: the upper half of the longest window. */
const slowMs = (fraction: number): number => TIMERS.reconnectMaxMs * (0.5 + fraction / 2);

export const isConnected = (state: LinkState): boolean =>
  state.phase === "registering" ||
  state.phase === "attesting" ||
  state.phase === "serving" ||
  state.phase === "draining";

/** When the shell has to send a `tick`; null when nothing falls due by itself. */
export const dueMs = (state: LinkState): number | null => ("untilMs" in state ? state.untilMs : null);

export const stepLink = (state: LinkState, event: LinkEvent, at: StepContext): LinkStep => {
  if (state.phase === "closed") return [state, []];
  switch (event.type) {
    case "start":
      return state.phase === "idle" ? connect(state.failures, at) : [state, []];
    case "opened":
      if (state.phase !== "connecting") return [state, []];
      return [
        { phase: "registering", untilMs: at.nowMs + WELCOME_MS, failures: state.failures },
        [{ type: "send_register" }],
      ];
    case "welcome":
      if (state.phase !== "registering") return [state, []];
      return [
        { phase: "attesting", untilMs: at.nowMs + VERDICT_MS, failures: state.failures },
        [{ type: "send_statement", nonce: event.nonce }],
      ];
    case "judged":
      return onJudged(state, event.online, at);
    case "drain":
      if (state.phase !== "serving") return [state, []];
      return [
        { phase: "draining", sinceMs: state.sinceMs, drainId: event.drainId, failures: state.failures },
        [{ type: "send_drain", drainId: event.drainId }],
      ];
    case "tick":
      return onTick(state, at);
    case "stop":
      return [
        { phase: "closed" },
        state.phase === "idle" || state.phase === "backoff" ? [] : [{ type: "hang_up", code: CLOSE_CODES.goingAway }],
      ];
    case "rejected":
    case "refused":
    case "lost":
    case "silent":
    case "suspended":
    case "broken":
      return onEnd(state, event, at);
  }
};

const connect = (failures: number, at: StepContext): LinkStep => [
  { phase: "connecting", untilMs: at.nowMs + CONNECT_MS, failures },
  [{ type: "connect" }],
];

const onJudged = (state: LinkState, online: boolean, at: StepContext): LinkStep => {
  if (state.phase === "attesting")
    return online
      ? [{ phase: "serving", sinceMs: at.nowMs, failures: state.failures }, []]
      : [{ ...state, untilMs: null }, []];
  if (state.phase === "serving" && !online)
    return [{ phase: "attesting", untilMs: null, failures: failuresAfter(state, at) }, []];
  return [state, []];
};

const onTick = (state: LinkState, at: StepContext): LinkStep => {
  const due = dueMs(state);
  if (due === null || at.nowMs < due) return [state, []];
  if (state.phase === "backoff") return connect(state.failures, at);
  const fault = new Fault("coordinator_unreachable", DEADLINE_TEXT[state.phase] ?? "the coordinator did not answer", {
    hint: "check --coordinator-url, or run: darkbloom doctor",
  });
  return onEnd(state, { type: "broken", fault }, at);
};

const DEADLINE_TEXT: Readonly<Partial<Record<LinkPhase, string>>> = {
  connecting: `no connection to the coordinator within ${CONNECT_MS / 1000} s`,
  registering: `the coordinator did not answer the registration within ${WELCOME_MS / 1000} s`,
  attesting: `the coordinator did not judge our statement within ${VERDICT_MS / 1000} s`,
};

type EndEvent = LinkEvent & { type: "rejected" | "refused" | "lost" | "silent" | "suspended" | "broken" };

/** A connection that served long enough forgets the failures before it. */
const failuresAfter = (state: LinkState, at: StepContext): number => {
  if (state.phase === "closed") return 0;
  const served = state.phase === "serving" || state.phase === "draining" ? at.nowMs - state.sinceMs : 0;
  return served >= TIMERS.reconnectResetMs ? 0 : state.failures;
};

/** Whatever ended the connection: when to try again, what to tell, what to close. */
const onEnd = (state: LinkState, event: EndEvent, at: StepContext): LinkStep => {
  if (state.phase === "idle" || state.phase === "backoff" || state.phase === "closed") return [state, []];
  // A drained connection is fenced for good and its process is about to end: nothing to come back for.
  if (state.phase === "draining") return [{ phase: "closed" }, hangUp(event)];
  const failures = failuresAfter(state, at);
  const waitMs = waitAfter(event, failures, at);
  const fault = faultOf(event, state.phase);
  return [
    { phase: "backoff", untilMs: at.nowMs + waitMs, failures: failures + 1 },
    [...hangUp(event), ...(fault === null ? [] : [{ type: "report", fault } as const])],
  ];
};

const hangUp = (event: EndEvent): LinkEffect[] => {
  if (event.type === "lost" || event.type === "refused") return [];
  return [{ type: "hang_up", code: event.type === "broken" ? CLOSE_CODES.protocolError : CLOSE_CODES.goingAway }];
};

const waitAfter = (event: EndEvent, failures: number, at: StepContext): number => {
  switch (event.type) {
    case "suspended":
      return 0;
    case "refused":
      return event.status >= 500 || event.status === 429 ? backoffMs(failures, at.fraction) : slowMs(at.fraction);
    case "rejected":
      return Math.max(
        event.retryAfterMs ?? 0,
        PASSING_REJECTS.has(event.code) ? backoffMs(failures, at.fraction) : slowMs(at.fraction),
      );
    case "broken":
      return event.fault.code === "provider_rejected" ? slowMs(at.fraction) : backoffMs(failures, at.fraction);
    case "lost":
      return event.code === CLOSE_CODES.policy ? slowMs(at.fraction) : backoffMs(failures, at.fraction);
    case "silent":
      return backoffMs(failures, at.fraction);
  }
};

const faultOf = (event: EndEvent, phase: LinkPhase): Fault | null => {
  switch (event.type) {
    case "suspended":
      return null;
    case "silent":
      return new Fault("coordinator_unreachable", "the coordinator has been silent for too long");
    case "broken":
      return event.fault;
    case "refused":
      return refusedFault(event.status);
    case "rejected":
      return rejectedFault(event.code);
    case "lost":
      return lostFault(event.code, phase);
  }
};

const refusedFault = (status: number): Fault => {
  if (status === 401 || status === 403)
    return new Fault("provider_rejected", `the coordinator refused the join token (HTTP ${status})`, {
      hint: "make a new one on the coordinator's machine: darkbloom join-token create, then start with --join <token>",
      reason: "join_token_refused",
    });
  if (status === 429 || status >= 500)
    return new Fault("coordinator_unreachable", `the coordinator takes no connection now (HTTP ${status})`);
  return new Fault("provider_rejected", `the URL leads to no provider endpoint (HTTP ${status})`, {
    hint: "check --coordinator-url: it is the address that serve-coordinator prints",
    reason: "url_wrong",
  });
};

/** Refusals that pass by themselves: they are retried like every lost connection. */
const PASSING_REJECTS: ReadonlySet<string> = new Set([
  "draining",
  "internal",
  "register_timeout",
  "attestation_timeout",
] satisfies RejectCode[]);

/** What an owner can do about the others. */
const REJECT_HINTS: Readonly<Partial<Record<RejectCode, string>>> = {
  model_hash_mismatch:
    "another file is known under this id: compare with darkbloom hash <file>, or choose another --id",
  model_not_allowed:
    "this join token does not allow the model: ask for one that does (join-token create --models <id>)",
  version_too_old: "update darkbloom",
  protocol_unsupported: "update darkbloom, or ask the coordinator's owner to",
  too_many_connections: "stop other providers that use this join token, or make another: darkbloom join-token create",
  token_revoked: "make a new one on the coordinator's machine: darkbloom join-token create",
};

const rejectedFault = (code: RejectCode): Fault =>
  new Fault(PASSING_REJECTS.has(code) ? "coordinator_unreachable" : "provider_rejected", rejectText(code), {
    hint: REJECT_HINTS[code] ?? "run: darkbloom doctor",
    reason: code,
  });

const rejectText = (code: RejectCode): string => `the coordinator refused this provider: ${code.replaceAll("_", " ")}`;

const lostFault = (code: number, phase: LinkPhase): Fault => {
  if (code === CLOSE_CODES.policy)
    return new Fault("provider_rejected", "the coordinator ended the connection: this provider is not trusted now", {
      hint: "run: darkbloom doctor",
      reason: "policy",
    });
  const what = phase === "connecting" ? "cannot reach the coordinator" : "lost the connection to the coordinator";
  const hint = "check --coordinator-url and that the coordinator runs";
  return new Fault("coordinator_unreachable", `${what} (close code ${code})`, phase === "connecting" ? { hint } : {});
};
