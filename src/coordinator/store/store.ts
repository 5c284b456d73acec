/** What the coordinator keeps on disk, as one narrow interface per domain; every method throws `store_failed` when the disk does not obey. */

/** An API key as stored: the secret itself is shown once and never kept. */
export interface StoredKey {
  readonly id: string;
  readonly name: string;
  /** Account the key spends from. */
  readonly owner: string;
  /** First ten and last four characters, for people. */
  readonly label: string;
  readonly createdAtMs: number;
  readonly revokedAtMs: number | null;
}

export interface KeyStore {
  insert(key: StoredKey, secretSha256: string): void;
  /** Any key with this secret, revoked ones included; null when there is none. */
  findBySecret(secretSha256: string): StoredKey | null;
  /** Newest first. */
  list(): readonly StoredKey[];
  /** False when no such key exists; a second revocation keeps the first date. */
  revoke(id: string, atMs: number): boolean;
}

export interface StoredJoinToken {
  readonly id: string;
  readonly name: string;
  readonly label: string;
  /** Model ids a provider may bring; null = any. */
  readonly models: readonly string[] | null;
  readonly createdAtMs: number;
  readonly expiresAtMs: number | null;
  readonly revokedAtMs: number | null;
}

export interface JoinTokenStore {
  insert(token: StoredJoinToken, secretSha256: string): void;
  findBySecret(secretSha256: string): StoredJoinToken | null;
  list(): readonly StoredJoinToken[];
  revoke(id: string, atMs: number): boolean;
}

/** A provider machine, known by its attested signing key. */
export interface StoredProvider {
  readonly id: string;
  readonly identityKey: string;
  readonly version: string;
  readonly chip: string;
  readonly machineModel: string;
  readonly trustLevel: string;
  readonly seenAtMs: number;
}

export interface ProviderStore {
  /** Inserts or refreshes; the first date a provider was seen is kept. */
  save(provider: StoredProvider): void;
  find(id: string): StoredProvider | null;
}

/** The weights a model id stands for in this network (catalog policy `open`). */
export interface ModelPin {
  readonly modelId: string;
  readonly manifestSha256: string;
  readonly providerId: string;
  readonly pinnedAtMs: number;
}

export interface ModelPinStore {
  /** Pins the hash unless the id is pinned already; answers with the pin that holds. */
  pin(candidate: ModelPin): ModelPin;
  find(modelId: string): ModelPin | null;
}

export interface Store extends Disposable {
  readonly keys: KeyStore;
  readonly joinTokens: JoinTokenStore;
  readonly providers: ProviderStore;
  readonly modelPins: ModelPinStore;
  /** Throws `store_failed` when the database cannot be read. */
  probe(): void;
  /** Closing twice is harmless. */
  close(): void;
}
