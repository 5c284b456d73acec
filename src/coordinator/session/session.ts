/**
 * One provider connection, as a pure function.
 *
 *   connected ──register──▶ challenged ──verified, admitted──▶ serving ──provider_drain──▶ draining
 *       └──────────────────────┴────────────────┴────────────────────┴──▶ closed
 *
 * `connected` and `challenged` end by their deadlines; `serving` and `draining` by silence. Until admission the provider is in
 * no registry. Data frames do not pass through here: the shell hands them to their attempts and reports violations.
 */
import { TRUST_REASONS, type TrustLevel, type TrustReason, type TrustStatus } from "../../core/trust.ts";
import { CLOSE_CODES } from "../../protocol/close-codes.ts";
import type { RejectCode } from "../../protocol/coordinator-messages.ts";
import type { CoordinatorMessage, ProviderMessage } from "../../protocol/messages.ts";
import { CHALLENGE_FAILURES_MAX, PROTOCOL_VERSION } from "../../protocol/timers.ts";
import type { CoordinatorOptions } from "../options.ts";

export type Registration = Extract<ProviderMessage, { type: "register" }>;
type AttestationResponse = Extract<ProviderMessage, { type: "attestation_response" }>;

/** A nonce that waits for its statement. */
interface Challenge {
  readonly nonce: string;
  readonly deadlineMs: number;
  /** The statement is here and being checked; a second one is ignored. */
  readonly answered: boolean;
}

/** What a provider is told about itself. */
export interface Standing {
  readonly status: TrustStatus;
  readonly trustLevel: TrustLevel;
  readonly reason: TrustReason;
  readonly seen: string | null;
  readonly expected: string | null;
}

interface Admitted {
  readonly registration: Registration;
  readonly standing: Standing;
  /** What it is told after the next good statement: a model that was refused at admission stays refused. */
  readonly verified: Standing;
  readonly challenge: Challenge | null;
  readonly challengeAtMs: number;
  /** Challenges in a row that failed. */
  readonly failures: number;
  readonly heartbeatSeq: number;
}

export type Session =
  | { readonly phase: "connected"; readonly deadlineMs: number }
  | { readonly phase: "challenged"; readonly registration: Registration; readonly challenge: Challenge }
  | ({ readonly phase: "serving" } & Admitted)
  | ({ readonly phase: "draining"; readonly drainId: string; readonly acknowledged: boolean } & Admitted)
  | { readonly phase: "closed" };

/** What the check of a statement came to. */
export type Verdict =
  | { readonly ok: true; readonly trustLevel: TrustLevel; readonly kPublic: string }
  | {
      readonly ok: false;
      readonly trustLevel: TrustLevel;
      readonly reason: TrustReason;
      readonly seen: string | null;
      readonly expected: string | null;
      /** An explicit `false`: untrusted at once, without waiting for a third failure. */
      readonly atOnce: boolean;
    };

export type SessionEvent =
  | { readonly type: "message"; readonly message: ProviderMessage }
  | { readonly type: "unsupported"; readonly messageType: string }
  | { readonly type: "malformed" }
  | { readonly type: "verdict"; readonly verdict: Verdict }
  /** The shell has put the provider into the registry. */
  | { readonly type: "admitted"; readonly standing: Standing }
  | { readonly type: "refused"; readonly code: RejectCode; readonly retryAfterMs: number | null }
  /** A data frame broke the rules of its attempt. */
  | { readonly type: "violation" }
  /** Nothing is in flight on this connection. */
  | { readonly type: "idle" }
  | { readonly type: "tick"; readonly seenAtMs: number }
  | { readonly type: "gone" };

export type SessionEffect =
  | { readonly type: "send"; readonly message: CoordinatorMessage }
  /** Sign and send `welcome` with this nonce. */
  | { readonly type: "welcome"; readonly nonce: string }
  | {
      readonly type: "verify";
      readonly registration: Registration;
      readonly response: AttestationResponse;
      readonly nonce: string;
      /** The first statement must name the registered key; a later one may announce its successor. */
      readonly first: boolean;
    }
  | {
      readonly type: "admit";
      readonly registration: Registration;
      readonly trustLevel: TrustLevel;
      readonly kPublic: string;
    }
  /** A later statement was good: routing counts its age from now. */
  | { readonly type: "renew"; readonly trustLevel: TrustLevel; readonly kPublic: string }
  | { readonly type: "serve"; readonly serving: boolean }
  | { readonly type: "end_attempts" }
  /** Keep this identity out for a while, also when it reconnects. */
  | { readonly type: "quarantine"; readonly ms: number }
  | { readonly type: "capacity"; readonly heartbeat: Extract<ProviderMessage, { type: "heartbeat" }> }
  | {
      readonly type: "attempt";
      readonly message: Extract<ProviderMessage, { type: "inference_accepted" | "inference_error" }>;
    }
  /** Report `idle` once nothing is in flight. */
  | { readonly type: "await_idle" }
  | { readonly type: "close"; readonly code: number; readonly reason: string }
  /** The peer is silent: no close handshake. */
  | { readonly type: "terminate" };

export interface SessionContext {
  readonly nowMs: number;
  /** Unix time of `nowMs`, for texts. */
  readonly wallMs: number;
  readonly nonce: () => string;
  readonly options: Pick<CoordinatorOptions, "challengeMs" | "challengeReplyMs" | "peerSilenceMs" | "minTrust">;
}

export type SessionStep = readonly [Session, readonly SessionEffect[]];

const CLOSED: Session = { phase: "closed" };
const NOTHING: readonly SessionEffect[] = [];
/** Failed challenges in a row after which the provider must register anew. */
const FAILURES_CLOSE = 2 * CHALLENGE_FAILURES_MAX;
/** How soon a failed challenge is repeated. */
const CHALLENGE_RETRY_MS = 30_000;
/** How long an identity stays out after a data frame of its broke the rules. */
const QUARANTINE_MS = 600_000;
const REFUSED = { status: "untrusted", trustLevel: "none", seen: null, expected: null } as const;

export const openSession = (nowMs: number, registerMs: number): Session => ({
  phase: "connected",
  deadlineMs: nowMs + registerMs,
});

const close = (code: number, reason: string): SessionStep => [CLOSED, [{ type: "close", code, reason }]];
const breach = (reason: string): SessionStep => close(CLOSE_CODES.protocolError, reason);

const reject = (code: RejectCode, message: string, retryAfterMs: number | null = null): SessionStep => [
  CLOSED,
  [
    {
      type: "send",
      message: { type: "reject", code, message, ...(retryAfterMs === null ? {} : { retry_after_ms: retryAfterMs }) },
    },
    { type: "close", code: CLOSE_CODES.policy, reason: code },
  ],
];

export const trustStatus = (standing: Standing, retryAtWallMs: number | null): SessionEffect => ({
  type: "send",
  message: {
    type: "trust_status",
    trust_level: standing.trustLevel,
    status: standing.status,
    reason: standing.reason,
    seen: standing.seen,
    expected: standing.expected,
    retry_at: retryAtWallMs === null ? null : new Date(retryAtWallMs).toISOString(),
    command: TRUST_REASONS[standing.reason].command,
  },
});

const register = (registration: Registration, context: SessionContext): SessionStep => {
  if (registration.protocol !== PROTOCOL_VERSION)
    return reject("protocol_unsupported", `this coordinator speaks protocol ${PROTOCOL_VERSION}`);
  const nonce = context.nonce();
  const challenge = { nonce, deadlineMs: context.nowMs + context.options.challengeReplyMs, answered: false };
  return [{ phase: "challenged", registration, challenge }, [{ type: "welcome", nonce }]];
};

const stepConnected = (
  session: Extract<Session, { phase: "connected" }>,
  event: SessionEvent,
  context: SessionContext,
): SessionStep => {
  if (event.type === "tick")
    return context.nowMs < session.deadlineMs
      ? [session, NOTHING]
      : reject("register_timeout", "no register message came in time");
  if (event.type !== "message") return [session, NOTHING];
  return event.message.type === "register"
    ? register(event.message, context)
    : breach("register must be the first message");
};

const stepChallenged = (
  session: Extract<Session, { phase: "challenged" }>,
  event: SessionEvent,
  context: SessionContext,
): SessionStep => {
  const { challenge, registration } = session;
  switch (event.type) {
    case "tick":
      if (context.nowMs < challenge.deadlineMs) return [session, NOTHING];
      return reject("attestation_timeout", "no statement came in time");
    case "verdict":
      return takeFirstVerdict(session, event.verdict);
    case "admitted":
      return admit(registration, event.standing, context);
    case "refused":
      return reject(event.code, "the provider could not be admitted", event.retryAfterMs);
    case "message":
      if (event.message.type === "attestation_response") {
        if (challenge.answered) return [session, NOTHING];
        return [
          { ...session, challenge: { ...challenge, answered: true } },
          [{ type: "verify", registration, response: event.message, nonce: challenge.nonce, first: true }],
        ];
      }
      if (event.message.type === "heartbeat" || event.message.type === "unsupported") return [session, NOTHING];
      return breach("unexpected message before verification");
    default:
      return [session, NOTHING];
  }
};

const takeFirstVerdict = (session: Extract<Session, { phase: "challenged" }>, verdict: Verdict): SessionStep => {
  if (verdict.ok) {
    const { trustLevel, kPublic } = verdict;
    return [session, [{ type: "admit", registration: session.registration, trustLevel, kPublic }]];
  }
  const standing: Standing = { ...verdict, status: "untrusted" };
  const [closed, effects] = reject("attestation_failed", TRUST_REASONS[verdict.reason].text);
  return [closed, [trustStatus(standing, null), ...effects]];
};

const admit = (registration: Registration, standing: Standing, context: SessionContext): SessionStep => {
  const challengeAtMs = context.nowMs + context.options.challengeMs;
  const admitted: Admitted = {
    registration,
    standing,
    verified: standing,
    challenge: null,
    challengeAtMs,
    failures: 0,
    heartbeatSeq: -1,
  };
  const retryAt = standing.status === "online" ? null : context.wallMs + context.options.challengeMs;
  return [
    { phase: "serving", ...admitted },
    [{ type: "serve", serving: standing.status === "online" }, trustStatus(standing, retryAt)],
  ];
};

type Live = Extract<Session, { phase: "serving" | "draining" }>;

/** Serving goes by standing, and a draining provider never serves again on this connection. */
const stand = (session: Live, standing: Standing, retryAtWallMs: number | null): SessionStep => [
  { ...session, standing },
  [
    { type: "serve", serving: session.phase === "serving" && standing.status === "online" },
    trustStatus(standing, retryAtWallMs),
  ],
];

const challengeFailed = (
  session: Live,
  failure: Pick<Standing, "reason" | "seen" | "expected"> & { readonly atOnce: boolean },
  context: SessionContext,
): SessionStep => {
  const failures = session.failures + 1;
  if (failures >= FAILURES_CLOSE) return close(CLOSE_CODES.policy, "too many failed challenges");
  const retryMs = Math.min(CHALLENGE_RETRY_MS, context.options.challengeMs);
  const next: Live = { ...session, failures, challenge: null, challengeAtMs: context.nowMs + retryMs };
  if (!failure.atOnce && failures < CHALLENGE_FAILURES_MAX) return [next, NOTHING];
  const { reason, seen, expected } = failure;
  const standing: Standing = { ...REFUSED, reason, seen, expected };
  const [stood, effects] = stand(next, standing, context.wallMs + retryMs);
  return [stood, failure.atOnce ? [...effects, { type: "end_attempts" }] : effects];
};

const tickLive = (session: Live, seenAtMs: number, context: SessionContext): SessionStep => {
  if (context.nowMs - seenAtMs >= context.options.peerSilenceMs) return [CLOSED, [{ type: "terminate" }]];
  const { challenge } = session;
  if (challenge !== null) {
    if (context.nowMs < challenge.deadlineMs) return [session, NOTHING];
    return challengeFailed(
      session,
      { reason: "attestation_failures", seen: null, expected: null, atOnce: false },
      context,
    );
  }
  if (context.nowMs < session.challengeAtMs) return [session, NOTHING];
  const nonce = context.nonce();
  const deadlineMs = context.nowMs + context.options.challengeReplyMs;
  return [
    { ...session, challenge: { nonce, deadlineMs, answered: false } },
    [{ type: "send", message: { type: "attestation_challenge", nonce } }],
  ];
};

const takeVerdict = (session: Live, verdict: Verdict, context: SessionContext): SessionStep => {
  if (!verdict.ok) return challengeFailed(session, verdict, context);
  const { trustLevel, kPublic } = verdict;
  const renewed: Live = {
    ...session,
    challenge: null,
    failures: 0,
    challengeAtMs: context.nowMs + context.options.challengeMs,
  };
  const renew: SessionEffect = { type: "renew", trustLevel, kPublic };
  const [stood, effects] = stand(renewed, { ...session.verified, trustLevel }, null);
  return [stood, [renew, ...effects]];
};

const takeMessage = (session: Live, message: ProviderMessage): SessionStep => {
  switch (message.type) {
    case "register":
      return breach("a second register");
    case "heartbeat":
      if (message.seq <= session.heartbeatSeq) return [session, NOTHING];
      return [{ ...session, heartbeatSeq: message.seq }, [{ type: "capacity", heartbeat: message }]];
    case "attestation_response": {
      const { challenge, registration } = session;
      if (challenge === null || challenge.answered) return [session, NOTHING];
      return [
        { ...session, challenge: { ...challenge, answered: true } },
        [{ type: "verify", registration, response: message, nonce: challenge.nonce, first: false }],
      ];
    }
    case "inference_accepted":
    case "inference_error":
      return [session, [{ type: "attempt", message }]];
    case "provider_drain":
      if (session.phase === "draining") return breach("a second provider_drain");
      return [
        { ...session, phase: "draining", drainId: message.drain_id, acknowledged: false },
        [{ type: "serve", serving: false }, { type: "await_idle" }],
      ];
    case "unsupported":
      return [session, NOTHING];
  }
};

const stepLive = (session: Live, event: SessionEvent, context: SessionContext): SessionStep => {
  switch (event.type) {
    case "message":
      return takeMessage(session, event.message);
    case "tick":
      return tickLive(session, event.seenAtMs, context);
    case "verdict":
      return takeVerdict(session, event.verdict, context);
    case "violation": {
      const standing: Standing = { ...REFUSED, reason: "data_violation" };
      const [, effects] = stand(session, standing, context.wallMs + QUARANTINE_MS);
      const [closed, ending] = close(CLOSE_CODES.policy, "data_violation");
      return [closed, [...effects, { type: "quarantine", ms: QUARANTINE_MS }, ...ending]];
    }
    case "idle":
      if (session.phase !== "draining" || session.acknowledged) return [session, NOTHING];
      return [
        { ...session, acknowledged: true },
        [{ type: "send", message: { type: "provider_drain_ack", drain_id: session.drainId } }],
      ];
    default:
      return [session, NOTHING];
  }
};

/** Times in `context` are monotonic but for `wallMs`. */
export const stepSession = (session: Session, event: SessionEvent, context: SessionContext): SessionStep => {
  if (session.phase === "closed") return [session, NOTHING];
  if (event.type === "gone") return [CLOSED, NOTHING];
  if (event.type === "malformed") return breach("malformed message");
  if (event.type === "unsupported")
    return [session, [{ type: "send", message: { type: "unsupported", unsupported_type: event.messageType } }]];
  switch (session.phase) {
    case "connected":
      return stepConnected(session, event, context);
    case "challenged":
      return stepChallenged(session, event, context);
    default:
      return stepLive(session, event, context);
  }
};

/** True where a data frame is in order. */
export const takesData = (session: Session): boolean => session.phase === "serving" || session.phase === "draining";
