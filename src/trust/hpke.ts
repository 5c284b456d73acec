/**
 * HPKE (RFC 9180) in base mode, used only to agree keys: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM.
 * Each side exports `Export("request", 32)` and `Export("response", 32)`; HPKE's own seal and open are not used.
 */
import { Aes256Gcm, CipherSuite, DhkemX25519HkdfSha256, HkdfSha256, type SenderContext } from "@hpke/core";
import { assert, Fault } from "../core/fault.ts";
import { uuidBytes } from "../core/ids.ts";

const encoder = new TextEncoder();
const HOP_LABEL = "darkbloom/v1/hop\0";
const MODEL_BYTES_MAX = 65_535;
const PUBLIC_KEY_BYTES = 32;
const EXPORT_BYTES = 32;

/** Sealed by the coordinator for one provider; 32 bytes each. */
export interface DirectionKeys {
  readonly request: Uint8Array;
  readonly response: Uint8Array;
}

let shared: CipherSuite | null = null;

/** Made once: it holds no secrets, and setting it up costs more than an agreement. */
const suite = (): CipherSuite => {
  shared ??= new CipherSuite({ kem: new DhkemX25519HkdfSha256(), kdf: new HkdfSha256(), aead: new Aes256Gcm() });
  return shared;
};

/**
 * `"darkbloom/v1/hop\0"` ‖ the attempt id's 16 raw bytes (as in a frame header) ‖ u16be byte length of the model ‖ the
 * model build in UTF-8. Binds the keys to this attempt and to the model it was meant for.
 */
export const hopInfo = (attemptId: string, modelBuild: string): Uint8Array => {
  const id = uuidBytes(attemptId);
  assert(id !== null, "an attempt id is a UUID");
  const model = encoder.encode(modelBuild);
  assert(model.length <= MODEL_BYTES_MAX, "a model id fits its length field");
  const label = encoder.encode(HOP_LABEL);
  return Uint8Array.from([...label, ...id, model.length >> 8, model.length & 0xff, ...model]);
};

/** Base64 of 32 bytes, decoded; throws `encryption_failed` for anything else. */
export const decodeKey32 = (base64: string): Uint8Array => {
  const bytes = Buffer.from(base64, "base64");
  if (bytes.length !== PUBLIC_KEY_BYTES || bytes.toString("base64") !== base64)
    throw new Fault("encryption_failed", "an encryption key is not 32 bytes of base64", { reason: "open_failed" });
  return new Uint8Array(bytes);
};

/** RFC 9180 DeriveKeyPair over 32 random bytes, so that randomness is the caller's. */
export const deriveKeyPair = (random32: Uint8Array): Promise<CryptoKeyPair> => {
  assert(random32.length === PUBLIC_KEY_BYTES, "a key pair is derived from 32 bytes");
  return suite().kem.deriveKeyPair(random32);
};

export const publicKeyBytes = async (pair: CryptoKeyPair): Promise<Uint8Array> =>
  new Uint8Array(await suite().kem.serializePublicKey(pair.publicKey));

/** The sender's half. `ephemeral` only fixes the ephemeral key in tests of known answers. */
export const agreeAsSender = async (input: {
  readonly recipient: Uint8Array;
  readonly info: Uint8Array;
  readonly ephemeral?: CryptoKeyPair;
}): Promise<{ readonly enc: Uint8Array; readonly keys: DirectionKeys }> => {
  const hpke = suite();
  try {
    const context = await hpke.createSenderContext({
      recipientPublicKey: await hpke.kem.deserializePublicKey(input.recipient),
      info: input.info,
      ...(input.ephemeral === undefined ? {} : { ekm: input.ephemeral }),
    });
    return { enc: new Uint8Array(context.enc), keys: await exportKeys(context) };
  } catch (cause) {
    throw new Fault("encryption_failed", "no keys could be agreed with the provider", { reason: "open_failed", cause });
  }
};

/** The recipient's half; gives wrong keys rather than an error for an `enc` made for another key. */
export const agreeAsRecipient = async (input: {
  readonly pair: CryptoKeyPair;
  readonly enc: Uint8Array;
  readonly info: Uint8Array;
}): Promise<DirectionKeys> => {
  const hpke = suite();
  try {
    return await exportKeys(
      await hpke.createRecipientContext({ recipientKey: input.pair, enc: input.enc, info: input.info }),
    );
  } catch (cause) {
    throw new Fault("encryption_failed", "no keys could be agreed with the sender", { reason: "open_failed", cause });
  }
};

const exportKeys = async (context: Pick<SenderContext, "export">): Promise<DirectionKeys> => ({
  request: new Uint8Array(await context.export(encoder.encode("request"), EXPORT_BYTES)),
  response: new Uint8Array(await context.export(encoder.encode("response"), EXPORT_BYTES)),
});
