/** Chooses a provider for one attempt: eligible, then least loaded. Pure; routing at scale replaces this function behind its type. */
import { isTrustAtLeast, type TrustLevel } from "../../core/trust.ts";

/** A model as a provider offers it now. */
export interface OfferedModel {
  readonly templateRenderOk: boolean;
  readonly tools: boolean;
  /** `running`, `idle`, …; null = nothing reported yet. */
  readonly slotState: string | null;
  /** Requests side by side; null = not reported. */
  readonly concurrencyMax: number | null;
}

/** What routing sees of a connected provider. */
export interface Candidate {
  readonly id: string;
  /** Verified, not draining, not untrusted. */
  readonly serving: boolean;
  readonly trustLevel: TrustLevel;
  /** Monotonic time of the last verified statement. */
  readonly verifiedAtMs: number;
  readonly inFlight: number;
  /** The model as this provider offers it; null when it does not. */
  offer(modelId: string): OfferedModel | null;
  inFlightOf(modelId: string): number;
}

export interface PickRequest {
  readonly modelId: string;
  readonly needsTools: boolean;
  /** Providers that failed this request already. */
  readonly excluded: ReadonlySet<string>;
}

export interface PickContext {
  /** Monotonic. */
  readonly nowMs: number;
  readonly minTrust: TrustLevel;
  readonly challengeFreshMs: number;
  /** Uniform in [0, 1): breaks ties. */
  readonly fraction: () => number;
}

/** `busy`: somebody could serve it later. `none`: nobody connected can; `reason` tells apart what the consumer is told. */
export type Choice<C extends Candidate = Candidate> =
  | { readonly type: "chosen"; readonly provider: C }
  | { readonly type: "busy" }
  | { readonly type: "none"; readonly reason: "no_provider" | "tools_unsupported" };

export type Pick = <C extends Candidate>(
  candidates: Iterable<C>,
  request: PickRequest,
  context: PickContext,
) => Choice<C>;

/** Requests side by side that a provider is given before its first capacity report. */
const CONCURRENCY_UNREPORTED = 4;

const isTrusted = (candidate: Candidate, context: PickContext): boolean =>
  candidate.serving &&
  isTrustAtLeast(candidate.trustLevel, context.minTrust) &&
  context.nowMs - candidate.verifiedAtMs <= context.challengeFreshMs;

const isRunnable = (offer: OfferedModel): boolean => offer.slotState !== "crashed" && offer.slotState !== "reloading";

/** Share of the provider's capacity in use; 1 or more = full. */
const loadOf = (candidate: Candidate, offer: OfferedModel, modelId: string): number =>
  candidate.inFlightOf(modelId) / Math.max(1, offer.concurrencyMax ?? CONCURRENCY_UNREPORTED);

/** True when this provider may be given requests for the model at all, now or once it has room. */
export const isServing = (candidate: Candidate, modelId: string, context: PickContext): boolean => {
  const offer = isTrusted(candidate, context) ? candidate.offer(modelId) : null;
  return offer !== null && isRunnable(offer);
};

export const pickLeastLoaded: Pick = (candidates, request, context) => {
  let best: {
    provider: typeof candidates extends Iterable<infer C> ? C : never;
    load: number;
    inFlight: number;
  } | null = null;
  let ties = 0;
  let busy = false;
  let toolsUnsupported = false;
  for (const candidate of candidates) {
    if (request.excluded.has(candidate.id) || !isServing(candidate, request.modelId, context)) continue;
    const offer = candidate.offer(request.modelId);
    if (offer === null) continue;
    if (request.needsTools && !(offer.templateRenderOk && offer.tools)) {
      toolsUnsupported = true;
      continue;
    }
    const load = loadOf(candidate, offer, request.modelId);
    if (load >= 1) {
      busy = true;
      continue;
    }
    const { inFlight } = candidate;
    const order = best === null ? -1 : load - best.load || inFlight - best.inFlight;
    if (order > 0) continue;
    // Each of n equals ends up chosen with probability 1/n, in one pass.
    ties = order === 0 ? ties + 1 : 1;
    if (order < 0 || context.fraction() * ties < 1) best = { provider: candidate, load, inFlight };
  }
  if (best !== null) return { type: "chosen", provider: best.provider };
  if (busy) return { type: "busy" };
  return { type: "none", reason: toolsUnsupported ? "tools_unsupported" : "no_provider" };
};
