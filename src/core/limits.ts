/** Every fixed bound of the program that is not a setting, with its reason. */
import { KIB, MIB } from "./units.ts";

/** Largest inference body; the number is part of the 413 message (api-billing-store §1.2). */
export const INFERENCE_BODY_BYTES_MAX = 16 * MIB;
/** Bun's own limit, well above ours, so that a body too large gets our answer and not Bun's bare 413. */
export const SERVER_BODY_BYTES_MAX = 256 * MIB;
/** Largest text frame on the provider link (protocol.md, Transport). */
export const CONTROL_FRAME_BYTES_MAX = 1 * MIB;
/** Largest binary frame towards the coordinator and towards the provider. */
export const DATA_FRAME_BYTES_MAX_COORDINATOR = 10 * MIB;
export const DATA_FRAME_BYTES_MAX_PROVIDER = 32 * MIB;
/** Plaintext bytes of one part of a sealed request. */
export const REQUEST_PART_BYTES_MAX = 1 * MIB;
/** A whole canonical request on the wire; its JSON can be longer than the body it came from. */
export const REQUEST_BYTES_MAX = 2 * INFERENCE_BODY_BYTES_MAX;
/** Events in one data frame; a frame holds what one step produced. */
export const FRAME_EVENTS_MAX = 4096;
/** Bytes the coordinator keeps for a consumer that reads slower than its provider writes. */
export const CONSUMER_BUFFER_BYTES_MAX = 1 * MIB;
/** Own send budget per provider socket, checked before each send. */
export const SOCKET_BUDGET_BYTES_MAX = 32 * MIB;
/** Bun's own limit behind that budget. */
export const SOCKET_BACKPRESSURE_BYTES_MAX = 64 * MIB;
/** Attempt ids a provider remembers so that none is opened twice. */
export const REPLAY_IDS_MAX = 200_000;
/** Longest a provider keeps one encryption key. */
export const KEY_ROTATION_MS = 86_400_000;
/** How long a retired encryption key still opens what was sealed before its successor was known; covers a stale statement. */
export const RETIRED_KEY_MS = 960_000;
/** Output bound of a request that names none. */
export const TOKENS_DEFAULT_MAX = 8192;
/** Chunks that carry no content and are held back before the response commits. */
export const HELD_CHUNKS_MAX = 8;
/** Bytes of events after which a provider flushes a data frame. */
export const CHUNK_FLUSH_BYTES = 1400;
/** Longest a provider holds events back. */
export const CHUNK_FLUSH_MS = 10;
/** How long a cancel for an unknown attempt is remembered. */
export const CANCEL_TOMBSTONE_MS = 60_000;
/** Largest header section of a GGUF file our reader takes. */
export const GGUF_HEADER_BYTES_MAX = 512 * MIB;
/** Largest configuration file. */
export const CONFIG_BYTES_MAX = 256 * KIB;
