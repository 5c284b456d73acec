/** Puts the provider's state into a heartbeat: load per model, counters, the machine's condition (protocol-trust §2.3). */
import type { ProviderMessage } from "../../protocol/messages.ts";
import type { JobCounters } from "../jobs/jobs.ts";
import type { LiveMetrics } from "../hardware/live-metrics.ts";
import type { SlotView } from "../slots.ts";

type Heartbeat = Extract<ProviderMessage, { type: "heartbeat" }>;
type WireSlot = Heartbeat["backend_capacity"]["slots"][number];

export interface HeartbeatInput {
  readonly seq: number;
  readonly draining: boolean;
  readonly running: number;
  readonly slots: readonly SlotView[];
  readonly counters: JobCounters;
  /** Null until first read. */
  readonly metrics: LiveMetrics | null;
}

/** The sheet's gigabytes are binary. */
const GIGABYTE = 1024 ** 3;
/** A step this late makes a coordinator look elsewhere; the engine itself gives up later. */
const WEDGE_SUSPECTED_MS = 30_000;

export const toHeartbeat = (input: HeartbeatInput): Heartbeat => {
  const { counters, metrics } = input;
  return {
    type: "heartbeat",
    seq: input.seq,
    status: input.draining ? "draining" : input.running > 0 ? "serving" : "idle",
    stats: {
      requests_served: counters.requestsServed,
      tokens_generated: counters.tokensGenerated,
      cancellations_received: counters.cancellationsReceived,
      cancellations_before_output: counters.cancellationsBeforeOutput,
      cancellations_partial_complete: counters.cancellationsPartial,
      generation_errors_after_output: counters.errorsAfterOutput,
      chunk_encryption_errors: counters.encryptionErrors,
    },
    system_metrics: {
      memory_pressure: metrics?.memory_pressure ?? 0,
      cpu_usage: metrics?.cpu_usage ?? 0,
      thermal_state: metrics?.thermal_state ?? "nominal",
    },
    backend_capacity: {
      slots: input.slots.map(toWireSlot),
      gpu_memory_active_gb: weightBytes(input.slots) / GIGABYTE,
      gpu_memory_peak_gb: weightBytes(input.slots) / GIGABYTE,
      gpu_memory_cache_gb: 0,
      total_memory_gb: (metrics?.memoryTotalBytes ?? 0) / GIGABYTE,
    },
  };
};

const weightBytes = (slots: readonly SlotView[]): number =>
  slots.reduce((sum, { engine }) => sum + (engine?.model.sizeBytes ?? 0), 0);

const toWireSlot = ({ modelId, state, engine, loadMs }: SlotView): WireSlot => {
  const idle = { model: modelId, state, num_running: 0, num_waiting: 0, active_tokens: 0, max_tokens_potential: 0 };
  if (engine === null) return idle;
  const stats = engine.stats();
  const { rows, contextTokens } = engine.model;
  return {
    ...idle,
    num_running: stats.rowsRunning,
    num_waiting: stats.requestsWaiting,
    active_tokens: stats.activeTokens,
    max_tokens_potential: stats.tokensPotentialMax,
    max_concurrency: rows,
    active_token_budget_used: stats.activeTokens,
    active_token_budget_max: contextTokens * rows,
    steps_executed: stats.stepsExecuted,
    wedge_suspected: stats.rowsRunning > 0 && (stats.msSinceLastStep ?? 0) > WEDGE_SUSPECTED_MS,
    ...(loadMs === null ? {} : { model_load_time_ms: loadMs }),
    ...(stats.decodeTps === null ? {} : { observed_decode_tps: stats.decodeTps }),
    ...(stats.prefillTps === null ? {} : { observed_prefill_tps: stats.prefillTps }),
    ...(stats.msSinceLastStep === null ? {} : { seconds_since_last_step: stats.msSinceLastStep / 1000 }),
  };
};
