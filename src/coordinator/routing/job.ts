/** One consumer request on its way through the attempts: what is asked, when it began, and where its time went. */
import type { Fault } from "../../core/fault.ts";
import type { ChatRequest } from "../../dialects/chat/request.ts";
import type { ConnectedProvider } from "./connected-provider.ts";

/** Microseconds, each measured once; what did not happen stays 0. Keys as in the `X-Timing` header. */
export interface JobTiming {
  parse_us: number;
  route_us: number;
  queue_us: number;
  encrypt_us: number;
  dispatch_us: number;
  provider_us: number;
}

export interface Job {
  readonly id: string;
  readonly request: ChatRequest;
  /** Model id that providers know. */
  readonly modelId: string;
  /** Estimate, for deadlines only. */
  readonly promptTokens: number;
  /** Monotonic time at which the consumer's request arrived; deadlines count from here. */
  readonly startedMs: number;
  readonly timing: JobTiming;
  /** Ends the response from this side. */
  readonly abandon: (fault: Fault) => void;
  /** The provider that holds the present or last attempt. */
  provider: ConnectedProvider | null;
  /** Attempts made so far. */
  attempts: number;
}

export const zeroTiming = (): JobTiming => ({
  parse_us: 0,
  route_us: 0,
  queue_us: 0,
  encrypt_us: 0,
  dispatch_us: 0,
  provider_us: 0,
});

/** Milliseconds with fractions to whole microseconds. */
export const toMicros = (ms: number): number => Math.max(0, Math.round(ms * 1000));
