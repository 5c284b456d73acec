/** What an owner may do to accounts, whichever way the command reaches the database. */
import {
  createJoinToken,
  revokeJoinToken,
  type CreatedJoinToken,
  type CreateJoinToken,
  type JoinAddress,
  type JoinTokenDeps,
} from "../accounts/join-tokens.ts";
import { createKey, revokeKey, type CreatedKey, type KeyDeps } from "../accounts/keys.ts";
import type { Store, StoredJoinToken, StoredKey } from "../store/store.ts";

/** A key as shown to its owner; dates are RFC 3339. */
export interface KeyListing {
  readonly id: string;
  readonly name: string;
  readonly label: string;
  readonly disabled: boolean;
  readonly created_at: string;
}

export interface JoinTokenListing {
  readonly id: string;
  readonly name: string;
  readonly label: string;
  readonly models: readonly string[] | null;
  readonly disabled: boolean;
  readonly created_at: string;
  readonly expires_at: string | null;
}

export interface AdminOperations {
  createKey(input: { readonly name: string }): Promise<CreatedKey>;
  /** Newest first. */
  listKeys(): Promise<readonly KeyListing[]>;
  /** Throws `not_found`. */
  revokeKey(id: string): Promise<void>;
  createJoinToken(input: CreateJoinToken): Promise<CreatedJoinToken>;
  listJoinTokens(): Promise<readonly JoinTokenListing[]>;
  /** Throws `not_found`. */
  revokeJoinToken(id: string): Promise<void>;
}

const toDate = (ms: number): string => new Date(ms).toISOString();

const toKeyListing = (key: StoredKey): KeyListing => ({
  id: key.id,
  name: key.name,
  label: key.label,
  disabled: key.revokedAtMs !== null,
  created_at: toDate(key.createdAtMs),
});

const toJoinTokenListing = (token: StoredJoinToken): JoinTokenListing => ({
  id: token.id,
  name: token.name,
  label: token.label,
  models: token.models,
  disabled: token.revokedAtMs !== null,
  created_at: toDate(token.createdAtMs),
  expires_at: token.expiresAtMs === null ? null : toDate(token.expiresAtMs),
});

export type AdminDeps = Pick<KeyDeps & JoinTokenDeps, "clock" | "ids"> & {
  readonly store: Pick<Store, "keys" | "joinTokens">;
};

export const createAdminOperations = (deps: AdminDeps, address: JoinAddress): AdminOperations => ({
  createKey: async (input) => createKey(deps, input),
  listKeys: async () => deps.store.keys.list().map(toKeyListing),
  revokeKey: async (id) => revokeKey(deps, id),
  createJoinToken: async (input) => createJoinToken(deps, input, address),
  listJoinTokens: async () => deps.store.joinTokens.list().map(toJoinTokenListing),
  revokeJoinToken: async (id) => revokeJoinToken(deps, id),
});
