/** Random numbers as a dependency, and every identifier and secret shape made from them. */

export interface Random {
  bytes(length: number): Uint8Array;
  /** Uniform in [0, 1). */
  fraction(): number;
}

export const systemRandom = (): Random => ({
  bytes: (length) => crypto.getRandomValues(new Uint8Array(length)),
  fraction: () => Math.random(),
});

export const toHex = (bytes: Uint8Array): string => bytes.toHex();

const REQUEST_ID_ALPHABET = "0123456789abcdefghijklmnopqrstuv";

/** Every kind of identifier the program makes. `prefix_` + hex unless the sheet says otherwise. */
export interface Ids {
  /** 12 characters of `0-9a-v`, for `X-Request-ID` (api-billing-store §1.2). */
  requestId(): string;
  /** UUID text, for attempts. */
  uuid(): string;
  /** `<prefix>_` + 24 hex digits, e.g. `key_…`, `jt_…`. */
  entityId(prefix: string): string;
  /** `<prefix>-` + 64 hex digits, e.g. `sk-db-…`, `jt-db-…`. Shown once, stored hashed. */
  secret(prefix: string): string;
}

export const createIds = (random: Random): Ids => ({
  requestId: () => Array.from(random.bytes(12), (byte) => REQUEST_ID_ALPHABET[byte % 32]).join(""),
  uuid: () => {
    const bytes = random.bytes(16);
    bytes[6] = ((bytes[6] ?? 0) & 0x0f) | 0x40;
    bytes[8] = ((bytes[8] ?? 0) & 0x3f) | 0x80;
    return uuidText(bytes);
  },
  entityId: (prefix) => `${prefix}_${toHex(random.bytes(12))}`,
  secret: (prefix) => `${prefix}-${toHex(random.bytes(32))}`,
});

/** 16 bytes as lower-case UUID text. */
export const uuidText = (bytes: Uint8Array): string => {
  const hex = toHex(bytes);
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`;
};

/** UUID text as 16 bytes; null when it is none. */
export const uuidBytes = (text: string): Uint8Array | null =>
  /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(text) ? Uint8Array.fromHex(text.replaceAll("-", "")) : null;
