/** Version, subprotocol and default timings of the coordinator ⇄ provider link (protocol.md, Transport; protocol-trust §1.2). */

export const PROTOCOL_VERSION = 1;
/** WebSocket subprotocol both ends must agree on. */
export const SUBPROTOCOL = "darkbloom.v1";

/** Milliseconds. Those that configuration can change are its defaults. */
export const TIMERS = {
  /** A provider's heartbeat; also sent on change. */
  heartbeatMs: 5_000,
  pingMs: 10_000,
  /** A peer silent for longer is dropped. */
  silenceMs: 30_000,
  /** From the open socket to `register`. */
  registerMs: 10_000,
  /** From a nonce to its statement. */
  attestationReplyMs: 30_000,
  resumeTokenMs: 120_000,
  reconnectMinMs: 1_000,
  reconnectMaxMs: 30_000,
  /** A session that lived this long resets the backoff. */
  reconnectResetMs: 30_000,
  /** A gap between two ping ticks beyond this means that the machine slept. */
  suspensionMs: 30_000,
} as const;

/** Challenges in a row that may fail before a provider is untrusted. */
export const CHALLENGE_FAILURES_MAX = 3;
