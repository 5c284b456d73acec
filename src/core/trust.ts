/** The closed vocabulary of trust, spoken by the wire, the checks, the registry and the screens. */

/** In rising order. A software key reaches `self_signed` at most. */
export const TRUST_LEVELS = ["none", "self_signed", "hardware"] as const;
export type TrustLevel = (typeof TRUST_LEVELS)[number];

export const isTrustAtLeast = (level: TrustLevel, least: TrustLevel): boolean =>
  TRUST_LEVELS.indexOf(level) >= TRUST_LEVELS.indexOf(least);

/** `pending`: not yet judged. `online`: verified, gets work. `waiting`: verified once, not routable now. `untrusted`: refused. */
export const TRUST_STATUSES = ["pending", "online", "waiting", "untrusted", "other"] as const;
export type TrustStatus = (typeof TRUST_STATUSES)[number];

/** Why a provider is where it is, and the one command that helps its owner; null where waiting is all there is to do. */
export const TRUST_REASONS = {
  verified: { text: "statement verified", command: null },
  awaiting_attestation: { text: "waiting for the provider's statement", command: null },
  attestation_timeout: { text: "the provider did not answer the challenge in time", command: "darkbloom doctor" },
  attestation_stale: { text: "the last verified statement is too old", command: "darkbloom doctor" },
  attestation_failures: { text: "too many challenges failed in a row", command: "darkbloom doctor" },
  statement_malformed: { text: "the statement could not be read", command: "darkbloom --version" },
  signature_invalid: { text: "the statement's signature does not verify", command: "darkbloom doctor" },
  nonce_mismatch: { text: "the statement answers another challenge", command: "darkbloom doctor" },
  identity_mismatch: { text: "the statement names another identity key", command: "darkbloom doctor" },
  key_mismatch: { text: "the statement names another encryption key", command: "darkbloom start" },
  posture_false: { text: "a protection of the system is switched off", command: "csrutil status" },
  posture_implausible: { text: "the system claims a protection it cannot have", command: "darkbloom doctor" },
  model_hash_mismatch: { text: "a model's files differ from what is known under its id", command: "darkbloom hash" },
  model_not_allowed: { text: "the join token does not allow this model", command: "darkbloom join-token list" },
  trust_too_low: { text: "this network asks for a higher trust level", command: "darkbloom doctor" },
  version_too_old: { text: "the provider's version is too old for this network", command: "darkbloom --version" },
  data_violation: { text: "a data frame broke the rules of its attempt", command: "darkbloom doctor" },
  draining: { text: "the provider takes no new work", command: "darkbloom start" },
  other: { text: "a reason this version does not know", command: "darkbloom --version" },
} as const satisfies Record<string, { text: string; command: string | null }>;
export type TrustReason = keyof typeof TRUST_REASONS;
