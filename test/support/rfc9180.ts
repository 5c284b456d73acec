/**
 * HPKE base mode for X25519, HKDF-SHA256 written from RFC 9180 with node:crypto alone: a second opinion on the library.
 * Section numbers are the RFC's.
 */
import { createHmac, createPrivateKey, createPublicKey, diffieHellman, type KeyObject } from "node:crypto";

const KEM_ID = 0x0020;
const KDF_ID = 0x0001;
const HASH_BYTES = 32;
const PKCS8_PREFIX = Buffer.from("302e020100300506032b656e04220420", "hex");
const SPKI_PREFIX = Buffer.from("302a300506032b656e032100", "hex");

const u16 = (value: number): Buffer => Buffer.from([value >> 8, value & 0xff]);
const text = (value: string): Buffer => Buffer.from(value, "utf8");
const EMPTY = Buffer.alloc(0);

const KEM_SUITE = Buffer.concat([text("KEM"), u16(KEM_ID)]);
const hpkeSuite = (aeadId: number): Buffer => Buffer.concat([text("HPKE"), u16(KEM_ID), u16(KDF_ID), u16(aeadId)]);

const hmac = (key: Buffer, data: Buffer): Buffer => createHmac("sha256", key).update(data).digest();
const extract = (salt: Buffer, ikm: Buffer): Buffer => hmac(salt.length === 0 ? Buffer.alloc(HASH_BYTES) : salt, ikm);
const expand = (prk: Buffer, info: Buffer, length: number): Buffer => {
  let block: Buffer = EMPTY;
  let output: Buffer = EMPTY;
  for (let index = 1; output.length < length; index += 1) {
    block = hmac(prk, Buffer.concat([block, info, Buffer.from([index])]));
    output = Buffer.concat([output, block]);
  }
  return output.subarray(0, length);
};

/** Section 4. */
const labeledExtract = (suite: Buffer, salt: Buffer, label: string, ikm: Buffer): Buffer =>
  extract(salt, Buffer.concat([text("HPKE-v1"), suite, text(label), ikm]));
const labeledExpand = (input: { suite: Buffer; prk: Buffer; label: string; info: Buffer; length: number }): Buffer =>
  expand(
    input.prk,
    Buffer.concat([u16(input.length), text("HPKE-v1"), input.suite, text(input.label), input.info]),
    input.length,
  );

const privateKeyOf = (secret: Buffer): KeyObject =>
  createPrivateKey({ key: Buffer.concat([PKCS8_PREFIX, secret]), format: "der", type: "pkcs8" });
const publicKeyOf = (bytes: Buffer): KeyObject =>
  createPublicKey({ key: Buffer.concat([SPKI_PREFIX, bytes]), format: "der", type: "spki" });

export interface RawKeyPair {
  readonly secret: Buffer;
  readonly public: Buffer;
}

/** Section 7.1.3. */
export const deriveRawKeyPair = (ikm: Buffer): RawKeyPair => {
  const prk = labeledExtract(KEM_SUITE, EMPTY, "dkp_prk", ikm);
  const secret = labeledExpand({ suite: KEM_SUITE, prk, label: "sk", info: EMPTY, length: 32 });
  const der = createPublicKey(privateKeyOf(secret)).export({ format: "der", type: "spki" });
  return { secret, public: der.subarray(SPKI_PREFIX.length) };
};

export interface Agreement {
  readonly sharedSecret: Buffer;
  readonly exporterSecret: Buffer;
  export(context: Buffer, length: number): Buffer;
}

/** Sections 4.1 (either half), 5.1 (base mode) and 5.3. `own` is the ephemeral pair at the sender, the static one at the recipient. */
export const agree = (input: {
  readonly role: "sender" | "recipient";
  readonly own: RawKeyPair;
  readonly peer: Buffer;
  readonly info: Buffer;
  readonly aeadId: number;
}): Agreement => {
  const dh = diffieHellman({ privateKey: privateKeyOf(input.own.secret), publicKey: publicKeyOf(input.peer) });
  const kemContext =
    input.role === "sender"
      ? Buffer.concat([input.own.public, input.peer])
      : Buffer.concat([input.peer, input.own.public]);
  const prk = labeledExtract(KEM_SUITE, EMPTY, "eae_prk", dh);
  const sharedSecret = labeledExpand({ suite: KEM_SUITE, prk, label: "shared_secret", info: kemContext, length: 32 });
  const suite = hpkeSuite(input.aeadId);
  const context = Buffer.concat([
    Buffer.from([0]),
    labeledExtract(suite, EMPTY, "psk_id_hash", EMPTY),
    labeledExtract(suite, EMPTY, "info_hash", input.info),
  ]);
  const secret = labeledExtract(suite, sharedSecret, "secret", EMPTY);
  const exporterSecret = labeledExpand({ suite, prk: secret, label: "exp", info: context, length: HASH_BYTES });
  return {
    sharedSecret,
    exporterSecret,
    export: (exporterContext, length) =>
      labeledExpand({ suite, prk: exporterSecret, label: "sec", info: exporterContext, length }),
  };
};
