/** Data frames without cryptography: layout, header checks, and what the cipher is handed. */
import { describe, expect, test } from "bun:test";
import {
  decodeFrame,
  FRAME_HEADER_BYTES,
  FRAME_KIND,
  openFrame,
  sealFrame,
  type FrameCipher,
} from "../../src/protocol/frames.ts";
import { ATTEMPT_ID } from "./_samples.ts";

/** Seals by appending sixteen zeros, and counts. */
const plainCipher = (sequence = 0): FrameCipher & { readonly headers: Uint8Array[] } => {
  const headers: Uint8Array[] = [];
  let next = sequence;
  return {
    headers,
    get nextSequence() {
      return next;
    },
    seal(header, plaintext) {
      headers.push(Uint8Array.from(header));
      next += 1;
      return Buffer.concat([plaintext, new Uint8Array(16)]);
    },
    open(header, sealed) {
      headers.push(Uint8Array.from(header));
      return sealed.subarray(0, -16);
    },
  };
};

test("a frame is version, kind, attempt id, sequence, ciphertext and tag", () => {
  const cipher = plainCipher(0x01020304);
  const frame = sealFrame(cipher, FRAME_KIND.chunk, ATTEMPT_ID, Uint8Array.of(0xaa, 0xbb));
  expect(frame.toHex()).toBe(`0102${ATTEMPT_ID.replaceAll("-", "")}01020304aabb${"00".repeat(16)}`);
  expect(cipher.headers[0]).toEqual(frame.slice(0, FRAME_HEADER_BYTES));
});

test("decoding gives back what was put in, as views", () => {
  const cipher = plainCipher(0xffff_ffff);
  const bytes = sealFrame(cipher, FRAME_KIND.terminal, ATTEMPT_ID, Uint8Array.of(1));
  const frame = decodeFrame(bytes);
  expect(frame).toMatchObject({ kind: 3, attemptId: ATTEMPT_ID, sequence: 0xffff_ffff });
  expect(frame.header.buffer).toBe(bytes.buffer);
  expect(openFrame(cipher, frame)).toEqual(Uint8Array.of(1));
  expect(cipher.headers[1]).toEqual(frame.header);
});

test("an empty plaintext is a frame of 38 bytes", () => {
  const bytes = sealFrame(plainCipher(), FRAME_KIND.request, ATTEMPT_ID, new Uint8Array());
  expect(bytes.length).toBe(38);
  expect(openFrame(plainCipher(), decodeFrame(bytes)).length).toBe(0);
});

describe("a header that is none of ours is a protocol error", () => {
  const valid = sealFrame(plainCipher(), FRAME_KIND.request, ATTEMPT_ID, Uint8Array.of(1));
  const changed = (offset: number, value: number): Uint8Array => {
    const copy = Uint8Array.from(valid);
    copy[offset] = value;
    return copy;
  };
  test.each([
    ["short", valid.slice(0, 37), "too short"],
    ["empty", new Uint8Array(), "too short"],
    ["of version 2", changed(0, 2), "another protocol version"],
    ["of kind 0", changed(1, 0), "unknown kind"],
    ["of kind 4", changed(1, 4), "unknown kind"],
  ])("%s", (_name, bytes, what) => {
    expect(() => decodeFrame(bytes)).toThrow(expect.objectContaining({ code: "protocol_error" }));
    expect(() => decodeFrame(bytes)).toThrow(what);
  });
});

test("only a UUID names an attempt", () => {
  expect(() => sealFrame(plainCipher(), FRAME_KIND.request, "attempt-1", Uint8Array.of(1))).toThrow("assertion failed");
});
