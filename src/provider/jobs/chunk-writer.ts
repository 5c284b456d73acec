/** Collects the events of one attempt and seals them into chunk frames: what one turn of the event loop brought travels together. */
import type { Clock } from "../../core/clock.ts";
import type { CompletionEvent, CompletionTerminal } from "../../core/completion.ts";
import { CHUNK_FLUSH_BYTES, CHUNK_FLUSH_MS, FRAME_EVENTS_MAX } from "../../core/limits.ts";
import { FRAME_KIND, sealFrame, type FrameCipher } from "../../protocol/frames.ts";
import { encodeEvents, encodeTerminal } from "../../protocol/payloads.ts";

/** Flushes every writer that got something in this turn: one callback per turn, however many attempts run. */
export class FlushTurn {
  readonly #dirty = new Set<ChunkWriter>();
  #scheduled = false;

  add(writer: ChunkWriter): void {
    this.#dirty.add(writer);
    if (this.#scheduled) return;
    this.#scheduled = true;
    setImmediate(() => {
      this.#scheduled = false;
      const writers = [...this.#dirty];
      this.#dirty.clear();
      for (const dirty of writers) dirty.flush();
    });
  }

  remove(writer: ChunkWriter): void {
    this.#dirty.delete(writer);
  }
}

export interface ChunkWriterOptions {
  readonly clock: Pick<Clock, "monotonicMs">;
  readonly turn: FlushTurn;
  readonly cipher: FrameCipher;
  readonly attemptId: string;
  readonly send: (frame: Uint8Array) => void;
  /** Sealing or sending failed: it may happen outside of the attempt's own flow, so it is told, not thrown. */
  readonly onFault: (thrown: unknown) => void;
}

/** JSON around one event, about. */
const EVENT_OVERHEAD_BYTES = 32;

const weightOf = (event: CompletionEvent): number =>
  EVENT_OVERHEAD_BYTES + (event.type === "tool_call" ? (event.arguments?.length ?? 0) : event.text.length);

export class ChunkWriter {
  readonly #options: ChunkWriterOptions;
  #events: CompletionEvent[] = [];
  #weight = 0;
  #firstMs = 0;
  #chunks = 0;
  #closed = false;

  constructor(options: ChunkWriterOptions) {
    this.#options = options;
  }

  /** Frames sent so far. */
  get chunks(): number {
    return this.#chunks;
  }

  push(events: readonly CompletionEvent[]): void {
    if (this.#closed || events.length === 0) return;
    const nowMs = this.#options.clock.monotonicMs();
    if (this.#events.length === 0) {
      this.#firstMs = nowMs;
      this.#options.turn.add(this);
    }
    for (const event of events) this.#add(event);
    // A turn of the event loop can last: the bounds hold within it too.
    if (this.#weight >= CHUNK_FLUSH_BYTES || nowMs - this.#firstMs >= CHUNK_FLUSH_MS) this.flush();
  }

  flush(): void {
    this.#options.turn.remove(this);
    if (this.#closed || this.#events.length === 0) return;
    const events = this.#events;
    this.#events = [];
    this.#weight = 0;
    this.#chunks += 1;
    this.#send(FRAME_KIND.chunk, encodeEvents(events));
  }

  /** Everything that waits, then the terminal: it never overtakes a chunk. Says whether the terminal went out. */
  finish(terminal: CompletionTerminal): boolean {
    this.flush();
    if (!this.#closed) this.#send(FRAME_KIND.terminal, encodeTerminal({ ...terminal, chunks: this.#chunks }));
    const sent = !this.#closed;
    this.close();
    return sent;
  }

  /** Drops what waits. */
  close(): void {
    this.#closed = true;
    this.#events = [];
    this.#options.turn.remove(this);
  }

  #add(event: CompletionEvent): void {
    const last = this.#events.at(-1);
    if (last !== undefined && last.type === event.type && last.type !== "tool_call" && event.type !== "tool_call")
      this.#events[this.#events.length - 1] = { type: last.type, text: last.text + event.text };
    else this.#events.push(event);
    this.#weight += weightOf(event);
    if (this.#events.length >= FRAME_EVENTS_MAX) this.flush();
  }

  #send(kind: typeof FRAME_KIND.chunk | typeof FRAME_KIND.terminal, plaintext: Uint8Array): void {
    try {
      this.#options.send(sealFrame(this.#options.cipher, kind, this.#options.attemptId, plaintext));
    } catch (error) {
      this.close();
      this.#options.onFault(error);
    } finally {
      plaintext.fill(0);
    }
  }
}
