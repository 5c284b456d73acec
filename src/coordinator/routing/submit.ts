/** Seals a job for a chosen provider and puts it on the wire as one attempt. */
import type { Clock } from "../../core/clock.ts";
import { Fault } from "../../core/fault.ts";
import type { Ids } from "../../core/ids.ts";
import { TOKENS_DEFAULT_MAX } from "../../core/limits.ts";
import { encodeCanonicalChat, tokensMaxOf } from "../../dialects/chat/request.ts";
import { FRAME_KIND, sealFrame } from "../../protocol/frames.ts";
import { splitRequest } from "../../protocol/payloads.ts";
import { sealToProvider } from "../../trust/seal.ts";
import type { CoordinatorOptions } from "../options.ts";
import type { ConnectedProvider } from "./connected-provider.ts";
import { toMicros, type Job } from "./job.ts";
import type { ProviderRegistry } from "./registry.ts";
import { RunningAttempt } from "./running-attempt.ts";

export interface SubmitDeps {
  readonly clock: Clock;
  readonly ids: Ids;
  readonly registry: Pick<ProviderRegistry, "changed">;
  readonly options: Pick<CoordinatorOptions, "silenceMs">;
}

export interface AttemptTerms {
  /** Monotonic time by which the provider must have accepted. */
  readonly deadlineMs: number;
  /** What the provider is told of the request's time to first content. */
  readonly budgetMs: number;
  readonly signal: AbortSignal;
  /** Called once when the attempt has ended, with its Fault or null when it is done. */
  readonly onEnd: (fault: Fault | null) => void;
}

/** The job's bytes, encoded once for all its attempts and wiped at the end. */
export interface Submission extends Disposable {
  /** Throws the Fault that kept the request from the wire. */
  send(provider: ConnectedProvider, terms: AttemptTerms): Promise<RunningAttempt>;
}

const TOKENS_WIRE_MAX = 10_000_000;

const startAttempt = (
  deps: SubmitDeps,
  provider: ConnectedProvider,
  terms: AttemptTerms,
  sealed: { readonly id: string; readonly ciphers: Awaited<ReturnType<typeof sealToProvider>>["ciphers"] },
): RunningAttempt => {
  const { id } = sealed;
  const attempt: RunningAttempt = new RunningAttempt(
    {
      clock: deps.clock,
      sendCancel: () => provider.link.cancel(id),
      onEnd: (fault) => {
        provider.attempts.delete(id);
        terms.onEnd(fault);
        deps.registry.changed();
        provider.link.onAttemptEnd();
      },
    },
    { id, keys: sealed.ciphers, deadlineMs: terms.deadlineMs, silenceMs: deps.options.silenceMs },
  );
  provider.attempts.set(id, attempt);
  return attempt;
};

export const createSubmission = (deps: SubmitDeps, job: Job): Submission => {
  const body = encodeCanonicalChat(job.request);
  const parts = splitRequest(body);
  return {
    async send(provider, terms) {
      const startedMs = deps.clock.monotonicMs();
      const id = deps.ids.uuid();
      const { enc, ciphers } = await sealToProvider({
        kPublic: provider.standing.kPublic,
        attemptId: id,
        modelBuild: job.modelId,
      });
      // Both may have happened while the keys were agreed, when no attempt existed that could be ended.
      if (terms.signal.aborted || !provider.serving) {
        ciphers.wipe();
        throw terms.signal.aborted
          ? new Fault("cancelled", "the client went away")
          : new Fault("draining", "the provider takes no new work any more");
      }
      const frames = parts.map((part) => sealFrame(ciphers.request, FRAME_KIND.request, id, part));
      const sealedMs = deps.clock.monotonicMs();
      const attempt = startAttempt(deps, provider, terms, { id, ciphers });
      try {
        provider.link.submit(
          {
            type: "inference_request",
            request_id: id,
            model: job.modelId,
            enc,
            parts: parts.length,
            bytes: body.length,
            max_tokens: Math.min(TOKENS_WIRE_MAX, tokensMaxOf(job.request) ?? TOKENS_DEFAULT_MAX),
            first_content_budget_ms: Math.max(0, Math.floor(terms.budgetMs)),
            priority: "interactive",
          },
          frames,
        );
      } catch (thrown) {
        if (thrown instanceof Fault) attempt.fail(thrown);
        throw thrown;
      }
      attempt.onSent();
      job.timing.encrypt_us += toMicros(sealedMs - startedMs);
      job.timing.dispatch_us += toMicros(deps.clock.monotonicMs() - sealedMs);
      return attempt;
    },
    [Symbol.dispose]: () => void body.fill(0),
  };
};
