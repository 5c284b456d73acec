/** Compact JWS (ES256) whose protected `typ` is the domain, and the encoding of the P-256 keys that sign them. */
import { compactVerify, importJWK } from "jose";
import { createHash } from "node:crypto";
import { Fault } from "../core/fault.ts";

/** Everything a key of ours may sign; a signature under one type means nothing under another. */
export type SignedType = "darkbloom-statement+jws" | "darkbloom-welcome+jws";

export const SIGNATURE_ALGORITHM = "ES256";

const POINT_BYTES = 65;
const COORDINATE_BYTES = 32;
const UNCOMPRESSED = 0x04;
const FINGERPRINT_HEX_DIGITS = 32;
const JWS_CHARS_MAX = 512 * 1024;
/** Only base64url, so that every decoder reads the same bytes. */
const COMPACT_JWS = /^[\w-]+\.[\w-]+\.[\w-]+$/;

interface PublicJwk {
  readonly x?: string | undefined;
  readonly y?: string | undefined;
}

/**
 * Text form of a signing key: base64url of its 65-byte uncompressed point (0x04 ‖ x ‖ y), 87 characters. One key has one
 * text, so identities compare as strings; a Secure Enclave gives the same bytes.
 */
export const encodeIdentityKey = (jwk: PublicJwk): string =>
  Buffer.concat([
    Uint8Array.of(UNCOMPRESSED),
    Buffer.from(jwk.x ?? "", "base64url"),
    Buffer.from(jwk.y ?? "", "base64url"),
  ]).toString("base64url");

const decodeIdentityKey = (identityKey: string): { readonly x: string; readonly y: string } | null => {
  const point = Buffer.from(identityKey, "base64url");
  if (point.length !== POINT_BYTES || point[0] !== UNCOMPRESSED || point.toString("base64url") !== identityKey)
    return null;
  return {
    x: point.subarray(1, 1 + COORDINATE_BYTES).toString("base64url"),
    y: point.subarray(1 + COORDINATE_BYTES).toString("base64url"),
  };
};

/** What people compare and join tokens pin: the first 32 hex digits of the SHA-256 of the 65 key bytes. */
export const fingerprintOf = (identityKey: string): string =>
  createHash("sha256").update(Buffer.from(identityKey, "base64url")).digest("hex").slice(0, FINGERPRINT_HEX_DIGITS);

/**
 * The payload's exact text when the signature is this key's, over this type; null for anything else, be it a bad key, a
 * bad signature, another algorithm or type, or header fields we do not write.
 */
export const verifyJws = async (input: {
  readonly type: SignedType;
  readonly jws: string;
  readonly identityKey: string;
}): Promise<string | null> => {
  const point = decodeIdentityKey(input.identityKey);
  if (point === null || input.jws.length > JWS_CHARS_MAX || !COMPACT_JWS.test(input.jws)) return null;
  try {
    const key = await importJWK({ kty: "EC", crv: "P-256", ...point }, SIGNATURE_ALGORITHM);
    const verified = await compactVerify(input.jws, key, { algorithms: [SIGNATURE_ALGORITHM] });
    const { typ, ...rest } = verified.protectedHeader;
    if (typ !== input.type || Object.keys(rest).join() !== "alg") return null;
    return new TextDecoder("utf-8", { fatal: true }).decode(verified.payload);
  } catch {
    // Every failure of a foreign signature means the same: it proves nothing.
    return null;
  }
};

/** The payload of a JWS whose signature is still to be checked, to find the key it names. Null when unreadable. */
export const peekPayload = (jws: string): unknown => {
  if (!COMPACT_JWS.test(jws) || jws.length > JWS_CHARS_MAX) return null;
  try {
    return JSON.parse(Buffer.from(jws.split(".")[1] ?? "", "base64url").toString("utf8")) as unknown;
  } catch {
    return null;
  }
};

/** Splits a compact JWS into what `attestation_response` carries: the signed part and the signature. */
export const splitJws = (jws: string): { readonly statement: string; readonly signature: string } => {
  const at = jws.lastIndexOf(".");
  if (at < 0) throw new Fault("internal", "a signer returned no compact JWS");
  return { statement: jws.slice(0, at), signature: jws.slice(at + 1) };
};
