/**
 * The life cycle of one attempt, as a pure function.
 *
 *   reserved → sent → accepted → streaming → done
 *        └───────┴────────┴─────────┴──→ failed | cancelled | expired
 *
 * Exactly one terminal: the first wins, whatever comes later is counted and dropped. Every phase has a deadline:
 * first content until `accepted`, then the silence limit.
 */
import { Fault } from "../../core/fault.ts";

export type AttemptPhase =
  /** A provider is chosen, nothing is sent. Left by `sent`. */
  | "reserved"
  /** The request is on the wire. Left by `accepted` or a first chunk. */
  | "sent"
  /** The provider holds a lease for it. Left by the first chunk. */
  | "accepted"
  /** Content has come. Left by a terminal only. */
  | "streaming"
  /** The provider's terminal came. */
  | "done"
  /** The provider, its connection or its data failed. */
  | "failed"
  /** Given up from this side: the consumer went away or read too slowly, or the provider lost its trust. */
  | "cancelled"
  /** A deadline passed. */
  | "expired";

export interface Attempt {
  readonly phase: AttemptPhase;
  /** Monotonic time at which the present phase expires; null in a terminal phase. */
  readonly deadlineMs: number | null;
  readonly silenceMs: number;
  /** Data frames taken, which the terminal must confirm. */
  readonly chunks: number;
  /** Frames and messages that came after the terminal. */
  readonly late: number;
}

export type AttemptEvent =
  | { readonly type: "sent" }
  | { readonly type: "accepted"; readonly nowMs: number }
  | { readonly type: "chunk"; readonly nowMs: number }
  | { readonly type: "terminal"; readonly chunks: number }
  | { readonly type: "failed"; readonly fault: Fault }
  | { readonly type: "cancelled"; readonly fault: Fault }
  | { readonly type: "tick"; readonly nowMs: number };

export type AttemptEffect =
  /** Hand the events on to the consumer. */
  | { readonly type: "deliver" }
  /** Tell the consumer's side that the lease is held. */
  | { readonly type: "announce" }
  | { readonly type: "finish" }
  | { readonly type: "fail"; readonly fault: Fault }
  /** Tell the provider to stop. */
  | { readonly type: "send_cancel" };

const NONE: readonly AttemptEffect[] = [];
const DELIVER: readonly AttemptEffect[] = [{ type: "deliver" }];
const ANNOUNCE: readonly AttemptEffect[] = [{ type: "announce" }];
const FINISH: readonly AttemptEffect[] = [{ type: "finish" }];

export const reserveAttempt = (deadlineMs: number, silenceMs: number): Attempt => ({
  phase: "reserved",
  deadlineMs,
  silenceMs,
  chunks: 0,
  late: 0,
});

export const isOver = (attempt: Attempt): boolean => attempt.deadlineMs === null;

const end = (attempt: Attempt, phase: AttemptPhase): Attempt => ({ ...attempt, phase, deadlineMs: null });

const fail = (attempt: Attempt, phase: AttemptPhase, fault: Fault): readonly [Attempt, readonly AttemptEffect[]] => {
  const effects: AttemptEffect[] = [{ type: "fail", fault }];
  // A provider that reported its own failure has stopped already, and one that never got the request has not begun.
  if (phase !== "failed" && attempt.phase !== "reserved") effects.push({ type: "send_cancel" });
  return [end(attempt, phase), effects];
};

const expiry = (attempt: Attempt): Fault =>
  attempt.phase === "streaming"
    ? new Fault("timeout", "request timed out", { reason: "silence" })
    : new Fault("timeout", "no provider answered in time", { reason: "first_content_timeout" });

const takeChunk = (attempt: Attempt, nowMs: number): readonly [Attempt, readonly AttemptEffect[]] => {
  if (attempt.phase === "reserved")
    return fail(attempt, "failed", new Fault("protocol_error", "the provider answered before it was asked"));
  const { silenceMs, chunks, late } = attempt;
  return [{ phase: "streaming", deadlineMs: nowMs + silenceMs, silenceMs, chunks: chunks + 1, late }, DELIVER];
};

const takeTerminal = (attempt: Attempt, chunks: number): readonly [Attempt, readonly AttemptEffect[]] => {
  if (attempt.phase === "reserved")
    return fail(attempt, "failed", new Fault("protocol_error", "the provider answered before it was asked"));
  if (chunks !== attempt.chunks)
    return fail(
      attempt,
      "failed",
      new Fault("encryption_failed", "the provider's answer is not complete", { reason: "sequence_mismatch" }),
    );
  return [end(attempt, "done"), FINISH];
};

export const stepAttempt = (attempt: Attempt, event: AttemptEvent): readonly [Attempt, readonly AttemptEffect[]] => {
  if (attempt.deadlineMs === null)
    return event.type === "tick" ? [attempt, NONE] : [{ ...attempt, late: attempt.late + 1 }, NONE];
  switch (event.type) {
    case "sent":
      return [attempt.phase === "reserved" ? { ...attempt, phase: "sent" } : attempt, NONE];
    case "accepted":
      if (attempt.phase !== "sent") return [attempt, NONE];
      return [{ ...attempt, phase: "accepted", deadlineMs: event.nowMs + attempt.silenceMs }, ANNOUNCE];
    case "chunk":
      return takeChunk(attempt, event.nowMs);
    case "terminal":
      return takeTerminal(attempt, event.chunks);
    case "failed":
      return fail(attempt, "failed", event.fault);
    case "cancelled":
      return fail(attempt, "cancelled", event.fault);
    case "tick":
      return event.nowMs < attempt.deadlineMs ? [attempt, NONE] : fail(attempt, "expired", expiry(attempt));
  }
};
