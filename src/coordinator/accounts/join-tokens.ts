/** Join tokens: what a provider machine shows to be let in. */
import type { Clock } from "../../core/clock.ts";
import { Fault } from "../../core/fault.ts";
import { modelIdField } from "../../core/fields.ts";
import type { Ids } from "../../core/ids.ts";
import { hashSecret, labelOf, makeJoinToken, parseJoinToken } from "../../trust/tokens.ts";
import { checkName } from "./name.ts";
import type { JoinTokenStore, StoredJoinToken } from "../store/store.ts";

const MODELS_MAX = 256;

export interface JoinTokenDeps {
  readonly clock: Pick<Clock, "nowMs">;
  readonly ids: Ids;
  readonly store: { readonly joinTokens: JoinTokenStore };
}

/** Where a new token's bearer finds this coordinator, and the key it must find there. */
export interface JoinAddress {
  /** Provider URL (ws or wss); absent when not known yet. */
  readonly url?: string;
  /** Fingerprint of the coordinator's identity key. */
  readonly fingerprint?: string;
}

export interface CreateJoinToken {
  /** What it is for; absent = `unnamed`. */
  readonly name?: string;
  /** Model ids the bearer may bring; absent = any. */
  readonly models?: readonly string[];
  /** Unix milliseconds; absent or null = never. */
  readonly expiresAtMs?: number | null;
}

export interface CreatedJoinToken {
  /** The token's text; this is the only time it is seen. */
  readonly token: string;
  readonly id: string;
  readonly expires_at: string | null;
}

const checkModels = (models: readonly string[]): void => {
  const valid =
    models.length > 0 && models.length <= MODELS_MAX && models.every((id) => modelIdField.safeParse(id).success);
  if (!valid) throw new Fault("usage", `models must be 1 to ${MODELS_MAX} model ids`, { param: "models" });
};

/** Throws `usage` for bad model ids or a date that has passed. */
export const createJoinToken = (
  deps: JoinTokenDeps,
  input: CreateJoinToken,
  address: JoinAddress,
): CreatedJoinToken => {
  const nowMs = deps.clock.nowMs();
  const expiresAtMs = input.expiresAtMs ?? null;
  if (input.models !== undefined) checkModels(input.models);
  if (expiresAtMs !== null && !(expiresAtMs > nowMs && expiresAtMs < 8.64e15))
    throw new Fault("usage", "a join token must expire in the future", { param: "expires_at" });
  const name = checkName("join token", input.name ?? "unnamed");
  const secret = deps.ids.secret("jt-db");
  const id = deps.ids.entityId("jt");
  deps.store.joinTokens.insert(
    {
      id,
      name,
      label: labelOf(secret),
      models: input.models ?? null,
      createdAtMs: nowMs,
      expiresAtMs,
      revokedAtMs: null,
    },
    hashSecret(secret),
  );
  return {
    token: makeJoinToken({ secret, ...address }),
    id,
    expires_at: expiresAtMs === null ? null : new Date(expiresAtMs).toISOString(),
  };
};

/** Throws `not_found` when no join token has this id; revoking twice is harmless. */
export const revokeJoinToken = (deps: JoinTokenDeps, id: string): void => {
  if (!deps.store.joinTokens.revoke(id, deps.clock.nowMs()))
    throw new Fault("not_found", "no join token has this id", { param: "id", hint: "darkbloom join-token list" });
};

/** The join token a provider shows; throws `unauthenticated`, with one text for unknown, revoked and malformed ones. */
export const authenticateJoinToken = (
  deps: Pick<JoinTokenDeps, "clock"> & { readonly store: { readonly joinTokens: JoinTokenStore } },
  text: string,
): StoredJoinToken => {
  let secret: string | null = null;
  try {
    ({ secret } = parseJoinToken(text));
  } catch (thrown) {
    if (!(thrown instanceof Fault)) throw thrown;
  }
  const token = secret === null ? null : deps.store.joinTokens.findBySecret(hashSecret(secret));
  if (token === null || token.revokedAtMs !== null)
    throw new Fault("unauthenticated", "invalid join token", { reason: "join_token_invalid" });
  if (token.expiresAtMs !== null && token.expiresAtMs <= deps.clock.nowMs())
    throw new Fault("unauthenticated", "the join token has expired", { reason: "join_token_expired" });
  return token;
};
