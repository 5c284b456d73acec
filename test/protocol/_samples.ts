/** One valid control message of every type, as decoded: what tests vary and mutate. */
import type { CoordinatorMessage, ProviderMessage } from "../../src/protocol/messages.ts";

export const ATTEMPT_ID = "01234567-89ab-4def-8123-456789abcdef";
export const KEY_32 = Buffer.alloc(32, 7).toString("base64");
export const SHA_256 = "ab".repeat(32);
export const IDENTITY_KEY = Buffer.concat([Uint8Array.of(4), Buffer.alloc(64, 9)]).toString("base64url");

const hardware = {
  machine_model: "Mac16,1",
  chip_name: "Apple M4 Pro",
  chip_family: "M4",
  chip_tier: "Pro",
  memory_gb: 48,
  memory_available_gb: 31.5,
  cpu_cores: { total: 14, performance: 10, efficiency: 4 },
  gpu_cores: 20,
  memory_bandwidth_gbs: 273,
} as const;

export const PROVIDER_SAMPLES: readonly ProviderMessage[] = [
  {
    type: "register",
    protocol: 1,
    version: "0.1.0",
    capabilities: ["text"],
    identity_key: IDENTITY_KEY,
    k_public: KEY_32,
    hardware,
    models: [
      {
        id: "darkbloom-demo",
        manifest_sha256: SHA_256,
        size_bytes: 3_700_000,
        quantization: "Q8_0",
        context: 2048,
        vision: false,
        tools: true,
        template_render_ok: true,
      },
    ],
    private_only: false,
    resume_token: "r-0123456789abcdef",
  },
  { type: "attestation_response", statement: "aGVhZA.cGF5bG9hZA", signature: "c2lnbmF0dXJl" },
  {
    type: "heartbeat",
    seq: 12,
    status: "serving",
    stats: { requests_served: 10, tokens_generated: 1234, usage_gaps: 0 },
    system_metrics: { memory_pressure: 0.4, cpu_usage: 0.9, thermal_state: "fair" },
    backend_capacity: {
      slots: [
        {
          model: "darkbloom-demo",
          state: "running",
          num_running: 2,
          num_waiting: 1,
          active_tokens: 300,
          max_tokens_potential: 900,
          max_concurrency: 4,
          observed_decode_tps: 811.5,
          wedge_suspected: false,
        },
      ],
      gpu_memory_active_gb: 1.5,
      gpu_memory_peak_gb: 2,
      gpu_memory_cache_gb: 0,
      total_memory_gb: 48,
      free_for_load_gb: 20,
    },
  },
  { type: "inference_accepted", request_id: ATTEMPT_ID },
  {
    type: "inference_error",
    request_id: ATTEMPT_ID,
    failure_code: "capacity",
    reason: "queue_full",
    status: 429,
    usage: { prompt_tokens: 5, completion_tokens: 0, reasoning_tokens: 0, cached_tokens: 0 },
    feasible_after_ms: 900,
  },
  { type: "provider_drain", drain_id: "drain_1" },
  { type: "unsupported", unsupported_type: "load_model" },
];

export const COORDINATOR_SAMPLES: readonly CoordinatorMessage[] = [
  {
    type: "welcome",
    connection_id: "conn_1",
    resume_token: "resume_1",
    heartbeat_ms: 5000,
    nonce: KEY_32,
    limits: { control_frame_bytes_max: 1_048_576, data_frame_bytes_max: 10_485_760, attestation_reply_ms: 30_000 },
    signature: "aGVhZA.cGF5bG9hZA.c2ln",
  },
  { type: "reject", code: "version_too_old", message: "this network needs 0.2.0 or later", retry_after_ms: 60_000 },
  { type: "attestation_challenge", nonce: KEY_32 },
  {
    type: "trust_status",
    trust_level: "none",
    status: "untrusted",
    reason: "posture_false",
    seen: "sip_enabled=false",
    expected: "sip_enabled=true",
    retry_at: "2026-06-22T12:00:00Z",
    command: "csrutil status",
  },
  {
    type: "inference_request",
    request_id: ATTEMPT_ID,
    model: "darkbloom-demo",
    enc: KEY_32,
    parts: 2,
    bytes: 1_048_577,
    max_tokens: 256,
    first_content_budget_ms: 5000,
    cache_scope: "scope_1",
    priority: "interactive",
  },
  { type: "cancel", request_id: ATTEMPT_ID },
  { type: "provider_drain_ack", drain_id: "drain_1" },
  { type: "unsupported", unsupported_type: "models_update" },
];
