/**
 * Data frames: `u8 version | u8 kind | 16 B attempt id | u32be sequence | ciphertext ‖ 16 B tag`.
 * The 22 header bytes are the AEAD's associated data; the sequence is its nonce. Knows nothing of keys.
 */
import { assert, Fault } from "../core/fault.ts";
import { uuidBytes, uuidText } from "../core/ids.ts";
import { PROTOCOL_VERSION } from "./timers.ts";

export const FRAME_HEADER_BYTES = 22;
/** `request` goes to the provider, `chunk` and `terminal` come from it. */
export const FRAME_KIND = { request: 1, chunk: 2, terminal: 3 } as const;
export type FrameKind = (typeof FRAME_KIND)[keyof typeof FRAME_KIND];

const ATTEMPT_ID_OFFSET = 2;
const SEQUENCE_OFFSET = 18;
const TAG_BYTES = 16;

/**
 * One direction of one attempt, implemented by `src/trust/seal.ts`. Counts by itself: the sequence in the header given
 * to `seal` or `open` must be `nextSequence`, which then rises by one. After a failed `open` it stays unusable.
 */
export interface FrameCipher {
  /** Ciphertext followed by its tag. */
  seal(header: Uint8Array, plaintext: Uint8Array): Uint8Array;
  /** Throws `encryption_failed` for a wrong sequence and for bytes that are not what was sealed. */
  open(header: Uint8Array, sealed: Uint8Array): Uint8Array;
  readonly nextSequence: number;
}

export interface Frame {
  readonly kind: FrameKind;
  /** UUID text: the `request_id` of the control messages. */
  readonly attemptId: string;
  readonly sequence: number;
  /** Views into the received bytes. */
  readonly header: Uint8Array;
  readonly sealed: Uint8Array;
}

/** One whole frame, ready to send. */
export const sealFrame = (
  cipher: FrameCipher,
  kind: FrameKind,
  attemptId: string,
  plaintext: Uint8Array,
): Uint8Array => {
  const id = uuidBytes(attemptId);
  assert(id !== null, "an attempt id is a UUID");
  const header = new Uint8Array(FRAME_HEADER_BYTES);
  header[0] = PROTOCOL_VERSION;
  header[1] = kind;
  header.set(id, ATTEMPT_ID_OFFSET);
  writeU32(header, SEQUENCE_OFFSET, cipher.nextSequence);
  const sealed = cipher.seal(header, plaintext);
  const frame = new Uint8Array(FRAME_HEADER_BYTES + sealed.length);
  frame.set(header, 0);
  frame.set(sealed, FRAME_HEADER_BYTES);
  return frame;
};

/** Reads the header; nothing in it is proven before `openFrame`. Throws `protocol_error`. */
export const decodeFrame = (bytes: Uint8Array): Frame => {
  if (bytes.length < FRAME_HEADER_BYTES + TAG_BYTES) throw new Fault("protocol_error", "data frame too short");
  if (bytes[0] !== PROTOCOL_VERSION) throw new Fault("protocol_error", "data frame of another protocol version");
  const kind = bytes[1];
  if (kind !== FRAME_KIND.request && kind !== FRAME_KIND.chunk && kind !== FRAME_KIND.terminal)
    throw new Fault("protocol_error", "data frame of unknown kind");
  return {
    kind,
    attemptId: uuidText(bytes.subarray(ATTEMPT_ID_OFFSET, SEQUENCE_OFFSET)),
    sequence: readU32(bytes, SEQUENCE_OFFSET),
    header: bytes.subarray(0, FRAME_HEADER_BYTES),
    sealed: bytes.subarray(FRAME_HEADER_BYTES),
  };
};

/** The plaintext; throws `encryption_failed` for a frame that is not the next one of its direction and attempt, or was changed. */
export const openFrame = (cipher: FrameCipher, frame: Frame): Uint8Array => cipher.open(frame.header, frame.sealed);

const writeU32 = (bytes: Uint8Array, offset: number, value: number): void => {
  bytes[offset] = value >>> 24;
  bytes[offset + 1] = value >>> 16;
  bytes[offset + 2] = value >>> 8;
  bytes[offset + 3] = value;
};

const readU32 = (bytes: Uint8Array, offset: number): number =>
  (((bytes[offset] ?? 0) << 24) |
    ((bytes[offset + 1] ?? 0) << 16) |
    ((bytes[offset + 2] ?? 0) << 8) |
    (bytes[offset + 3] ?? 0)) >>>
  0;
