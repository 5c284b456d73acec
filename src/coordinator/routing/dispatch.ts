/** The ladder: places a job on a provider, relays its answer, and tries another provider while the consumer has seen nothing. */
import type { Clock } from "../../core/clock.ts";
import type { CompletionOutput, CompletionStream } from "../../core/completion.ts";
import { Fault, toFault } from "../../core/fault.ts";
import type { Ids, Random } from "../../core/ids.ts";
import { errorFields, type Log } from "../../core/log.ts";
import type { CoordinatorOptions } from "../options.ts";
import type { ConnectedProvider } from "./connected-provider.ts";
import { toMicros, type Job } from "./job.ts";
import type { Choice, Pick as PickProvider, PickContext } from "./pick.ts";
import type { ProviderRegistry } from "./registry.ts";
import { judgeAttempt, toBusyFault, toExhaustedFault, toUnservedFault } from "./retry.ts";
import type { RunningAttempt } from "./running-attempt.ts";
import { createSubmission, type Submission } from "./submit.ts";
import type { WaitingRoom } from "./waiting-room.ts";

export interface DispatchDeps {
  readonly clock: Clock;
  readonly ids: Ids;
  readonly random: Random;
  readonly log: Log;
  readonly registry: ProviderRegistry;
  readonly room: WaitingRoom;
  readonly pick: PickProvider;
  readonly options: Pick<
    CoordinatorOptions,
    "attemptsMax" | "minTrust" | "challengeFreshMs" | "firstContentBaseMs" | "firstContentPerTokenMs" | "silenceMs"
  >;
}

/** Providers that refuse because they drain cost no attempt; this bounds them. */
const FREE_RETRIES_MAX = 64;
/** What an attempt gets to be accepted when waiting has used up the request's own time. */
const ACCEPT_MS_MIN = 1_000;

interface Ladder {
  readonly excluded: Set<string>;
  /** Attempts that count. */
  spent: number;
  free: number;
  last: Fault | null;
}

interface Placed {
  readonly provider: ConnectedProvider;
  readonly release: () => void;
}

export const pickContext = (deps: Pick<DispatchDeps, "clock" | "random" | "options">): PickContext => ({
  nowMs: deps.clock.monotonicMs(),
  minTrust: deps.options.minTrust,
  challengeFreshMs: deps.options.challengeFreshMs,
  fraction: () => deps.random.fraction(),
});

/** Monotonic time by which a provider must have accepted the job, whatever happens on the way. */
const firstContentDeadline = (deps: DispatchDeps, job: Job): number =>
  job.startedMs + deps.options.firstContentBaseMs + deps.options.firstContentPerTokenMs * job.promptTokens;

const pickFor = (deps: DispatchDeps, job: Job, ladder: Ladder): Choice<ConnectedProvider> =>
  deps.pick(
    deps.registry.candidates(),
    { modelId: job.modelId, needsTools: (job.request.tools?.length ?? 0) > 0, excluded: ladder.excluded },
    pickContext(deps),
  );

const reserve = (job: Job, provider: ConnectedProvider): Placed => ({
  provider,
  release: provider.reserve(job.modelId),
});

/** Only the first attempt may wait for room: a retry that finds none reports what went wrong before. */
const place = async (deps: DispatchDeps, job: Job, ladder: Ladder, signal: AbortSignal): Promise<Placed> => {
  const startedMs = deps.clock.monotonicMs();
  const choice = pickFor(deps, job, ladder);
  job.timing.route_us += toMicros(deps.clock.monotonicMs() - startedMs);
  if (choice.type === "chosen") return reserve(job, choice.provider);
  if (ladder.last !== null) throw toExhaustedFault(ladder.last, job.attempts);
  if (choice.type === "none") throw toUnservedFault(job.request.model, choice.reason);
  const input = { deadlineMs: firstContentDeadline(deps, job), signal };
  const placed = await deps.room.wait<Placed | Fault>(input, () => {
    const next = pickFor(deps, job, ladder);
    if (next.type === "busy") return null;
    return next.type === "chosen" ? reserve(job, next.provider) : toUnservedFault(job.request.model, next.reason);
  });
  job.timing.queue_us += toMicros(deps.clock.monotonicMs() - startedMs);
  if (placed === null) throw toBusyFault(deps.room.size);
  if (placed instanceof Fault) throw placed;
  return placed;
};

/** Half of what is left while others could still be asked, so that one deaf provider does not use up the request's time. */
const attemptDeadline = (deps: DispatchDeps, job: Job, ladder: Ladder, provider: ConnectedProvider): number => {
  const nowMs = deps.clock.monotonicMs();
  const leftMs = firstContentDeadline(deps, job) - nowMs;
  const excluded = new Set(ladder.excluded).add(provider.id);
  const others =
    ladder.spent < deps.options.attemptsMax && pickFor(deps, job, { ...ladder, excluded }).type === "chosen";
  return nowMs + Math.max(ACCEPT_MS_MIN, others ? leftMs / 2 : leftMs);
};

const noteFailure = (
  deps: DispatchDeps,
  job: Job,
  ladder: Ladder,
  failure: { provider: string; fault: Fault },
): void => {
  const { provider, fault } = failure;
  const verdict = judgeAttempt(fault);
  deps.log.info("attempt_failed", { job: job.id, provider, verdict, ...errorFields(fault) });
  if (verdict === "final") throw fault;
  ladder.excluded.add(provider);
  ladder.last = fault;
  if (verdict === "free") {
    ladder.spent -= 1;
    ladder.free += 1;
  }
  if (ladder.spent >= deps.options.attemptsMax || ladder.free > FREE_RETRIES_MAX)
    throw toExhaustedFault(fault, job.attempts);
};

const wentAway = (): Fault => new Fault("cancelled", "the client went away");

/** The job's present attempt, for whoever has to end it from outside. */
interface Current {
  attempt: RunningAttempt | null;
}

async function* climb(
  deps: DispatchDeps,
  job: Job,
  current: Current,
  signal: AbortSignal,
): AsyncGenerator<CompletionOutput> {
  const ladder: Ladder = { excluded: new Set(), spent: 0, free: 0, last: null };
  using submission: Submission = createSubmission(deps, job);
  let announced = false;
  let content = false;
  for (;;) {
    const { provider, release } = await place(deps, job, ladder, signal);
    ladder.spent += 1;
    job.attempts += 1;
    job.provider = provider;
    try {
      const deadlineMs = attemptDeadline(deps, job, ladder, provider);
      const attempt = await submission.send(provider, {
        deadlineMs,
        budgetMs: firstContentDeadline(deps, job) - deps.clock.monotonicMs(),
        signal,
        onEnd: (fault) => {
          release();
          // Nobody pulls on a consumer's behalf that does not read, so that it has to be told from here.
          if (fault?.code === "consumer_too_slow") job.abandon(fault);
        },
      });
      current.attempt = attempt;
      if (signal.aborted) attempt.cancel(wentAway()); // just now, when there was no present attempt to end
      const sentMs = deps.clock.monotonicMs();
      for (;;) {
        const output = await attempt.next();
        if (output.type === "accepted" && announced) continue;
        if (output.type === "accepted") announced = true;
        if (!content && output.type !== "accepted") {
          content = true;
          job.timing.provider_us = toMicros(deps.clock.monotonicMs() - sentMs);
        }
        yield output;
        if (output.type === "terminal") return;
      }
    } catch (thrown) {
      const fault = toFault(thrown);
      if (content) throw fault;
      noteFailure(deps, job, ladder, { provider: provider.id, fault });
    } finally {
      release();
      current.attempt?.cancel(wentAway());
      current.attempt = null;
    }
  }
}

/**
 * Runs the job on up to `attemptsMax` providers; its stream throws the Fault the consumer is to see. Aborting the signal or
 * returning the iterator cancels the running attempt at once, also while nothing has come yet.
 */
export const dispatch = (deps: DispatchDeps, job: Job, signal: AbortSignal): CompletionStream => ({
  [Symbol.asyncIterator]: () => {
    const stop = new AbortController();
    const current: Current = { attempt: null };
    const cancel = (): void => {
      stop.abort();
      current.attempt?.cancel(wentAway());
    };
    signal.addEventListener("abort", cancel, { once: true });
    if (signal.aborted) cancel();
    const outputs = climb(deps, job, current, stop.signal);
    return {
      next: () => outputs.next(),
      return: async () => {
        cancel();
        signal.removeEventListener("abort", cancel);
        return outputs.return(undefined);
      },
    };
  },
});
