/** Known answers of the sealing between coordinator and provider, computed without the code under test. */
import { createCipheriv } from "node:crypto";
import { agree, deriveRawKeyPair } from "./rfc9180.ts";

const AES_256_GCM = 0x0002;

interface FrameCase {
  readonly direction: "request" | "response";
  readonly kind: 1 | 2 | 3;
  readonly sequence: number;
  readonly plaintext: string;
  readonly frame: string;
}

export interface HopVector {
  readonly provider_ikm: string;
  readonly provider_public: string;
  readonly ephemeral_ikm: string;
  readonly enc: string;
  readonly attempt_id: string;
  readonly model: string;
  readonly info: string;
  readonly exporter_secret: string;
  readonly request_key: string;
  readonly response_key: string;
  readonly frames: readonly FrameCase[];
}

interface HopInput {
  readonly providerIkm: string;
  readonly ephemeralIkm: string;
  readonly attemptId: string;
  readonly model: string;
}

const CASES: readonly HopInput[] = [
  {
    providerIkm: "11".repeat(32),
    ephemeralIkm: "22".repeat(32),
    attemptId: "01234567-89ab-4def-8123-456789abcdef",
    model: "darkbloom-demo",
  },
  {
    providerIkm: "33".repeat(32),
    ephemeralIkm: "44".repeat(32),
    attemptId: "fedcba98-7654-4210-bedc-ba9876543210",
    model: "org/Modèle-漢字:Q4_K_M",
  },
];

const FRAMES: readonly Omit<FrameCase, "frame">[] = [
  { direction: "request", kind: 1, sequence: 0, plaintext: '{"model":"darkbloom-demo","messages":[]}' },
  { direction: "request", kind: 1, sequence: 1, plaintext: "second part" },
  { direction: "response", kind: 2, sequence: 0, plaintext: '[{"type":"text","text":"Hello"}]' },
  { direction: "response", kind: 2, sequence: 1, plaintext: "[]" },
  { direction: "response", kind: 3, sequence: 2, plaintext: '{"finish_reason":"stop"}' },
];

const frameOf = (key: Buffer, attemptId: string, frame: Omit<FrameCase, "frame">): string => {
  const header = Buffer.alloc(22);
  header.writeUInt8(1, 0);
  header.writeUInt8(frame.kind, 1);
  header.set(Buffer.from(attemptId.replaceAll("-", ""), "hex"), 2);
  header.writeUInt32BE(frame.sequence, 18);
  const nonce = Buffer.alloc(12);
  nonce.writeBigUInt64BE(BigInt(frame.sequence), 4);
  const cipher = createCipheriv("aes-256-gcm", key, nonce);
  cipher.setAAD(header);
  const body = Buffer.concat([cipher.update(frame.plaintext, "utf8"), cipher.final(), cipher.getAuthTag()]);
  return Buffer.concat([header, body]).toString("hex");
};

const vectorOf = (input: HopInput): HopVector => {
  const provider = deriveRawKeyPair(Buffer.from(input.providerIkm, "hex"));
  const ephemeral = deriveRawKeyPair(Buffer.from(input.ephemeralIkm, "hex"));
  const model = Buffer.from(input.model, "utf8");
  const length = Buffer.alloc(2);
  length.writeUInt16BE(model.length);
  const id = Buffer.from(input.attemptId.replaceAll("-", ""), "hex");
  const info = Buffer.concat([Buffer.from("darkbloom/v1/hop\0", "utf8"), id, length, model]);
  const agreement = agree({ role: "sender", own: ephemeral, peer: provider.public, info, aeadId: AES_256_GCM });
  const keys = {
    request: agreement.export(Buffer.from("request"), 32),
    response: agreement.export(Buffer.from("response"), 32),
  };
  return {
    provider_ikm: input.providerIkm,
    provider_public: provider.public.toString("hex"),
    ephemeral_ikm: input.ephemeralIkm,
    enc: ephemeral.public.toString("hex"),
    attempt_id: input.attemptId,
    model: input.model,
    info: info.toString("hex"),
    exporter_secret: agreement.exporterSecret.toString("hex"),
    request_key: keys.request.toString("hex"),
    response_key: keys.response.toString("hex"),
    frames: FRAMES.map((frame) => {
      const { direction, kind, sequence, plaintext } = frame;
      return { direction, kind, sequence, plaintext, frame: frameOf(keys[direction], input.attemptId, frame) };
    }),
  };
};

export const computeHopVectors = (): HopVector[] => CASES.map(vectorOf);
