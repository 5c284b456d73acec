/** WebSocket close codes of the provider link (protocol-trust §1.3). */

export const CLOSE_CODES = {
  /** Graceful end; also an older connection replaced by a newer one of the same identity. */
  normal: 1000,
  /** The process stops or restarts. */
  goingAway: 1001,
  protocolError: 1002,
  /** Never sent: what a socket reports that was cut, or whose frame was too large for Bun.serve (treat as 1009). */
  abnormal: 1006,
  /** Rejected, untrusted, or too many failed challenges. */
  policy: 1008,
  tooBig: 1009,
  internal: 1011,
  /** Come back later: draining, or state could not be loaded. */
  tryAgainLater: 1013,
} as const;
