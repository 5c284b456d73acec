/** `heartbeat`: what a provider reports every few seconds and on every change (protocol-trust §2.3, June fields). */
import { z } from "zod";
import { clampedCountField, clampedField, countField, foldedField, modelIdField } from "../core/fields.ts";

const HEARTBEAT_STATUSES = ["idle", "serving", "draining"] as const;
const THERMAL_STATES = ["nominal", "fair", "serious", "critical"] as const;
const SLOT_STATES = ["running", "idle", "idle_shutdown", "crashed", "reloading", "other"] as const;

const SLOTS_MAX = 64;
const COUNT_MAX = 1e15;
const TOKENS_MAX = 1e9;
const GIGABYTES_MAX = 1e6;
const DURATION_MS_MAX = 1e10;

const counter = clampedCountField(COUNT_MAX);
const gigabytes = clampedField(GIGABYTES_MAX);
const tokens = clampedCountField(TOKENS_MAX);

/** Cumulative per process; a smaller value than before means a restart. */
const statsField = z.object({
  requests_served: counter,
  tokens_generated: counter,
  cancellations_received: counter.optional(),
  cancellations_before_output: counter.optional(),
  cancellations_partial_complete: counter.optional(),
  generation_errors_after_output: counter.optional(),
  chunk_encryption_errors: counter.optional(),
  stream_closed_without_terminal: counter.optional(),
  cancel_during_model_load: counter.optional(),
  usage_gaps: counter.optional(),
});

const systemMetricsField = z.object({
  /** Share of memory in use, 0–1. */
  memory_pressure: clampedField(1),
  cpu_usage: clampedField(1),
  thermal_state: foldedField(THERMAL_STATES, "nominal"),
});

/** One loaded or loadable model. `running` and `idle` are warm; `crashed` and `reloading` are not routable. */
const slotField = z.object({
  model: modelIdField,
  state: foldedField(SLOT_STATES, "other"),
  num_running: clampedCountField(65_536),
  num_waiting: clampedCountField(65_536),
  /** Prompt and answer tokens of all running rows. */
  active_tokens: tokens,
  /** Most tokens the running rows may still come to. */
  max_tokens_potential: tokens,
  max_concurrency: clampedCountField(65_536).optional(),
  observed_decode_tps: clampedField(1e6).optional(),
  observed_prefill_tps: clampedField(1e7).optional(),
  active_token_budget_used: tokens.optional(),
  active_token_budget_max: tokens.optional(),
  queued_token_budget: tokens.optional(),
  kv_bytes_per_token: clampedCountField(1e9).optional(),
  model_load_time_ms: clampedField(DURATION_MS_MAX).optional(),
  steps_executed: counter.optional(),
  admits: counter.optional(),
  first_tokens_emitted: counter.optional(),
  seconds_since_last_step: clampedField(DURATION_MS_MAX).optional(),
  seconds_since_last_first_token: clampedField(DURATION_MS_MAX).optional(),
  wedge_suspected: z.boolean().optional(),
  eval_in_flight_ms: clampedField(DURATION_MS_MAX).optional(),
});

const backendCapacityField = z.object({
  slots: z.array(slotField).max(SLOTS_MAX),
  gpu_memory_active_gb: gigabytes,
  gpu_memory_peak_gb: gigabytes,
  gpu_memory_cache_gb: gigabytes,
  total_memory_gb: gigabytes,
  /** Weights that could be loaded right now; absent when not known. */
  free_for_load_gb: gigabytes.optional(),
});

export const heartbeatSchema = z.object({
  type: z.literal("heartbeat"),
  /** Rises by one per heartbeat of a connection; an older snapshot is discarded. */
  seq: countField,
  status: foldedField(HEARTBEAT_STATUSES, "serving"),
  stats: statsField,
  system_metrics: systemMetricsField,
  backend_capacity: backendCapacityField,
});
