/** Key agreement against published vectors, an independent computation, and our recorded known answers. */
import { describe, expect, test } from "bun:test";
import { Aes128Gcm, Aes256Gcm, CipherSuite, DhkemX25519HkdfSha256, HkdfSha256 } from "@hpke/core";
import { decodeFrame, openFrame, sealFrame } from "../../src/protocol/frames.ts";
import { AesGcmFrameCipher } from "../../src/trust/frame-cipher.ts";
import {
  agreeAsRecipient,
  agreeAsSender,
  decodeKey32,
  deriveKeyPair,
  hopInfo,
  publicKeyBytes,
} from "../../src/trust/hpke.ts";
import recorded from "../fixtures/hpke-vectors.json";
import published from "../fixtures/hpke-rfc9180.json";
import { computeHopVectors, type HopVector } from "../support/hop-vectors.ts";
import { agree, deriveRawKeyPair } from "../support/rfc9180.ts";
import { rejectionOf } from "../support/rejection.ts";

const hex = (text: string): Uint8Array<ArrayBuffer> => Uint8Array.fromHex(text);
const vectors = recorded.vectors as readonly HopVector[];

describe("published vectors of RFC 9180", () => {
  for (const vector of published.vectors) {
    test(`hold for our own computation, aead ${vector.aead_id}`, () => {
      const ephemeral = deriveRawKeyPair(Buffer.from(vector.ikm_e, "hex"));
      expect(ephemeral.public.toString("hex")).toBe(vector.enc);
      const shared = { info: Buffer.from(vector.info, "hex"), aeadId: vector.aead_id };
      const recipient = { secret: Buffer.from(vector.sk_r, "hex"), public: Buffer.from(vector.pk_r, "hex") };
      const sides = [
        agree({ role: "sender", own: ephemeral, peer: recipient.public, ...shared }),
        agree({ role: "recipient", own: recipient, peer: ephemeral.public, ...shared }),
      ];
      for (const side of sides)
        for (const { context, value } of vector.exports)
          expect(side.export(Buffer.from(context, "hex"), 32).toString("hex")).toBe(value);
    });

    test(`hold for the library, aead ${vector.aead_id}`, async () => {
      const aead = vector.aead_id === 1 ? new Aes128Gcm() : new Aes256Gcm();
      const suite = new CipherSuite({ kem: new DhkemX25519HkdfSha256(), kdf: new HkdfSha256(), aead });
      const context = await suite.createSenderContext({
        recipientPublicKey: await suite.kem.deserializePublicKey(hex(vector.pk_r)),
        info: hex(vector.info),
        ekm: hex(vector.ikm_e),
      });
      expect(new Uint8Array(context.enc).toHex()).toBe(vector.enc);
      for (const exported of vector.exports)
        expect(new Uint8Array(await context.export(hex(exported.context), 32)).toHex()).toBe(exported.value);
    });
  }
});

describe("recorded known answers", () => {
  test("are what the independent computation gives today", () => {
    expect(computeHopVectors()).toEqual([...vectors]);
  });

  for (const vector of vectors) {
    test(`hold for ${vector.model}: both sides, every frame`, async () => {
      const pair = await deriveKeyPair(hex(vector.provider_ikm));
      expect((await publicKeyBytes(pair)).toHex()).toBe(vector.provider_public);
      const info = hopInfo(vector.attempt_id, vector.model);
      expect(info.toHex()).toBe(vector.info);
      const ephemeral = await deriveKeyPair(hex(vector.ephemeral_ikm));
      const sender = await agreeAsSender({ recipient: hex(vector.provider_public), info, ephemeral });
      expect(sender.enc.toHex()).toBe(vector.enc);
      const recipient = await agreeAsRecipient({ pair, enc: hex(vector.enc), info });
      for (const keys of [sender.keys, recipient])
        expect([keys.request.toHex(), keys.response.toHex()]).toEqual([vector.request_key, vector.response_key]);
      for (const direction of ["request", "response"] as const) {
        const key = hex(direction === "request" ? vector.request_key : vector.response_key);
        const sealer = new AesGcmFrameCipher({ key: Uint8Array.from(key), role: "seal" });
        const opener = new AesGcmFrameCipher({ key: Uint8Array.from(key), role: "open" });
        for (const frame of vector.frames.filter((item) => item.direction === direction)) {
          const plaintext = new TextEncoder().encode(frame.plaintext);
          expect(sealFrame(sealer, frame.kind, vector.attempt_id, plaintext).toHex()).toBe(frame.frame);
          const decoded = decodeFrame(hex(frame.frame));
          expect(decoded).toMatchObject({ kind: frame.kind, sequence: frame.sequence });
          expect(new TextDecoder().decode(openFrame(opener, decoded))).toBe(frame.plaintext);
        }
      }
    });
  }
});

describe("bad input", () => {
  // Points of small order, by which every shared secret would be zero (RFC 7748, section 6.1).
  test.each([
    "00".repeat(32),
    `01${"00".repeat(31)}`,
    `ecffffff${"ff".repeat(27)}7f`,
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
  ])("key %s agrees with nobody", async (point) => {
    const pair = await deriveKeyPair(new Uint8Array(32).fill(5));
    const failure = { code: "encryption_failed", reason: "open_failed" };
    expect(await rejectionOf(agreeAsSender({ recipient: hex(point), info: new Uint8Array() }))).toMatchObject(failure);
    expect(await rejectionOf(agreeAsRecipient({ pair, enc: hex(point), info: new Uint8Array() }))).toMatchObject(
      failure,
    );
  });

  test.each([
    "",
    "AAAA",
    Buffer.alloc(33).toString("base64"),
    `${Buffer.alloc(32).toString("base64")} `,
    "é".repeat(44),
  ])("%p is no key", (text) => {
    expect(() => decodeKey32(text)).toThrow(expect.objectContaining({ code: "encryption_failed" }));
  });

  test("info separates attempts and models even where their texts run together", () => {
    const infos = [
      hopInfo("01234567-89ab-4def-8123-456789abcdef", "ab"),
      hopInfo("01234567-89ab-4def-8123-456789abcdee", "ab"),
      hopInfo("01234567-89ab-4def-8123-456789abcdef", "a"),
      hopInfo("01234567-89ab-4def-8123-456789abcdef", ""),
    ].map((info) => info.toHex());
    expect(new Set(infos).size).toBe(infos.length);
  });
});
