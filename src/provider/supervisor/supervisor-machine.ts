/**
 * When the provider's child is started, restarted or given up, as a pure step function; `supervisor.ts` performs it.
 *
 *   idle ─start─► running ─crash─► waiting ─tick─► running
 *                   │  └─clean exit──────────────────────────► done
 *                   └─stop─► stopping ─exit, or killed at the deadline─► done       (stop while waiting: done at once)
 */
import type { Fault } from "../../core/fault.ts";
import { EXIT_ENGINE_LOST } from "../lifecycle.ts";

export type StopSignal = "SIGINT" | "SIGTERM";

export interface ChildExit {
  /** Null when a signal ended it. */
  readonly code: number | null;
  readonly signal: string | null;
}

export type SupervisorState =
  | { readonly phase: "idle"; readonly failures: number }
  /** No deadline: a provider runs as long as it runs. */
  | { readonly phase: "running"; readonly failures: number; readonly sinceMs: number }
  | { readonly phase: "waiting"; readonly failures: number; readonly untilMs: number }
  | { readonly phase: "stopping"; readonly untilMs: number; readonly killed: boolean }
  | { readonly phase: "done"; readonly end: SupervisedEnd };

export interface SupervisedEnd {
  readonly exitCode: number;
  /** What the parent has to tell, because the child could not; null when the child spoke for itself. */
  readonly fault: Fault | null;
}

export type SupervisorEvent =
  | { readonly type: "start" }
  /** `fault`: why a crash is not followed by a restart; null = restart. */
  | { readonly type: "exited"; readonly exit: ChildExit; readonly fault: Fault | null }
  | { readonly type: "stop"; readonly signal: StopSignal }
  | { readonly type: "tick" };

export type SupervisorEffect =
  | { readonly type: "spawn" }
  | { readonly type: "signal"; readonly signal: StopSignal }
  | { readonly type: "kill" }
  | { readonly type: "report_restart"; readonly waitMs: number };

export interface SupervisorContext {
  readonly nowMs: number;
  readonly stopMs: number;
}

export type SupervisorStep = readonly [SupervisorState, readonly SupervisorEffect[]];

export const RESTART_MIN_MS = 1_000;
export const RESTART_MAX_MS = 30_000;
/** A child that lived this long was no failure of the start. */
export const RESTART_RESET_MS = 60_000;
const INTERRUPTED = 130;
const SIGNAL_BASE = 128;
const DOUBLINGS_MAX = 16;

/** Signals by which people and systems end programs on purpose. */
const ASKED: ReadonlySet<string> = new Set(["SIGINT", "SIGTERM", "SIGHUP"]);
/** The same as a shell in between reports them. */
const ASKED_CODES: ReadonlySet<number> = new Set([SIGNAL_BASE + 1, SIGNAL_BASE + 2, SIGNAL_BASE + 15]);

/** A native abort, a segfault, a kill (out of memory, mostly), or an engine that the child gave up. Anything else is the child's own verdict. */
export const isCrash = ({ code, signal }: ChildExit): boolean => {
  if (signal !== null) return !ASKED.has(signal);
  if (code === null) return true;
  return code === EXIT_ENGINE_LOST || (code > SIGNAL_BASE && code <= SIGNAL_BASE + 64 && !ASKED_CODES.has(code));
};

export const restartMs = (failures: number): number =>
  Math.min(RESTART_MAX_MS, RESTART_MIN_MS * 2 ** Math.min(failures, DOUBLINGS_MAX));

export const INITIAL_SUPERVISOR: SupervisorState = { phase: "idle", failures: 0 };

/** When the shell has to send a `tick`; null when nothing falls due. */
export const supervisorDueMs = (state: SupervisorState): number | null => ("untilMs" in state ? state.untilMs : null);

const done = (exitCode: number, fault: Fault | null): SupervisorStep => [
  { phase: "done", end: { exitCode, fault } },
  [],
];

const spawn = (failures: number, at: SupervisorContext): SupervisorStep => [
  { phase: "running", failures, sinceMs: at.nowMs },
  [{ type: "spawn" }],
];

export const stepSupervisor = (
  state: SupervisorState,
  event: SupervisorEvent,
  at: SupervisorContext,
): SupervisorStep => {
  switch (event.type) {
    case "start":
      return state.phase === "idle" ? spawn(state.failures, at) : [state, []];
    case "exited":
      return onExit(state, event, at);
    case "stop":
      return onStop(state, event.signal, at);
    case "tick":
      return onTick(state, at);
  }
};

const onExit = (
  state: SupervisorState,
  { exit, fault }: Extract<SupervisorEvent, { type: "exited" }>,
  at: SupervisorContext,
): SupervisorStep => {
  if (state.phase === "stopping") return done(exitCodeOf(exit, state.killed), null);
  if (state.phase !== "running") return [state, []];
  if (!isCrash(exit)) return done(exitCodeOf(exit, false), null);
  if (fault !== null) return done(1, fault);
  const failures = at.nowMs - state.sinceMs >= RESTART_RESET_MS ? 0 : state.failures;
  const waitMs = restartMs(failures);
  return [
    { phase: "waiting", failures: failures + 1, untilMs: at.nowMs + waitMs },
    [{ type: "report_restart", waitMs }],
  ];
};

/** A stop that had to kill is a stop all the same; a child ended by an asked-for signal ended cleanly. */
const exitCodeOf = ({ code, signal }: ChildExit, killed: boolean): number => {
  if (killed) return 0;
  if (code !== null) return code;
  return signal !== null && ASKED.has(signal) ? 0 : 1;
};

const onStop = (state: SupervisorState, signal: StopSignal, at: SupervisorContext): SupervisorStep => {
  switch (state.phase) {
    case "idle":
    case "waiting":
      return done(0, null);
    case "running":
      return [{ phase: "stopping", untilMs: at.nowMs + at.stopMs, killed: false }, [{ type: "signal", signal }]];
    case "stopping": {
      // Whoever asks twice wants it now.
      const [ended] = done(INTERRUPTED, null);
      return [ended, [{ type: "kill" }]];
    }
    case "done":
      return [state, []];
  }
};

const onTick = (state: SupervisorState, at: SupervisorContext): SupervisorStep => {
  const due = supervisorDueMs(state);
  if (due === null || at.nowMs < due) return [state, []];
  if (state.phase === "waiting") return spawn(state.failures, at);
  if (state.phase !== "stopping" || state.killed) return [state, []];
  return [{ ...state, killed: true, untilMs: Number.MAX_SAFE_INTEGER }, [{ type: "kill" }]];
};
