/** API keys: made, listed, revoked, and checked on every request. */
import type { Clock } from "../../core/clock.ts";
import { Fault } from "../../core/fault.ts";
import { bearerToken } from "../../core/http.ts";
import type { Ids } from "../../core/ids.ts";
import { hashSecret, labelOf } from "../../trust/tokens.ts";
import { checkName } from "./name.ts";
import type { KeyStore, StoredKey } from "../store/store.ts";

/** The one account of a self-hosted network. */
export const LOCAL_OWNER = "local";

const SECRET_CHARS_MAX = 256;

export interface KeyDeps {
  readonly clock: Pick<Clock, "nowMs">;
  readonly ids: Ids;
  readonly store: { readonly keys: KeyStore };
}

export interface CreatedKey {
  /** The secret; this is the only time it is seen. */
  readonly key: string;
  readonly id: string;
}

export const createKey = (deps: KeyDeps, input: { readonly name: string }): CreatedKey => {
  checkName("key", input.name);
  const key = deps.ids.secret("sk-db");
  const id = deps.ids.entityId("key");
  deps.store.keys.insert(
    {
      id,
      name: input.name,
      owner: LOCAL_OWNER,
      label: labelOf(key),
      createdAtMs: deps.clock.nowMs(),
      revokedAtMs: null,
    },
    hashSecret(key),
  );
  return { key, id };
};

/** Throws `not_found` when no key has this id; revoking twice is harmless. */
export const revokeKey = (deps: KeyDeps, id: string): void => {
  if (!deps.store.keys.revoke(id, deps.clock.nowMs()))
    throw new Fault("not_found", "no key has this id", { param: "id", hint: "darkbloom keys list" });
};

/**
 * The key a request is made with. Throws `unauthenticated`. Looks the secret's digest up each time: a lookup is
 * microseconds, and a revocation counts from the next request on, even one made by another process.
 */
export const authenticateKey = (deps: { readonly store: { readonly keys: KeyStore } }, request: Request): StoredKey => {
  const secret = bearerToken(request);
  if (secret === null) throw new Fault("unauthenticated", "missing credentials — use Authorization: Bearer <token>");
  const key = secret.length > SECRET_CHARS_MAX ? null : deps.store.keys.findBySecret(hashSecret(secret));
  if (key === null || key.revokedAtMs !== null)
    throw new Fault("unauthenticated", "invalid API key — create one with `darkbloom keys create`");
  return key;
};
