/** Coalescing: one frame per turn, early at 1400 bytes and after 10 ms, the terminal last; and what happens when sending fails. */
import { describe, expect, test } from "bun:test";
import * as fc from "fast-check";
import type { CompletionEvent } from "../../src/core/completion.ts";
import { createIds, systemRandom } from "../../src/core/ids.ts";
import { CHUNK_FLUSH_BYTES } from "../../src/core/limits.ts";
import { ChunkWriter, FlushTurn } from "../../src/provider/jobs/chunk-writer.ts";
import { decodeFrame, FRAME_KIND, type Frame, type FrameCipher } from "../../src/protocol/frames.ts";
import { decodeEvents, decodeTerminal } from "../../src/protocol/payloads.ts";
import { createFakeClock } from "../support/fake-clock.ts";
import { terminalOf } from "../support/script-stream.ts";
import { waitFor } from "../support/wait.ts";

/** Seals nothing, so that frames can be read. */
const openCipher = (): FrameCipher => {
  let sequence = 0;
  return {
    seal(_header, plaintext) {
      sequence += 1;
      return Uint8Array.from([...plaintext, ...new Uint8Array(16)]);
    },
    open: (_header, sealed) => sealed,
    get nextSequence() {
      return sequence;
    },
  };
};

const openWriter = (send?: (frame: Uint8Array) => void) => {
  const clock = createFakeClock();
  const frames: Frame[] = [];
  const faults: unknown[] = [];
  const writer = new ChunkWriter({
    clock,
    turn: new FlushTurn(),
    cipher: openCipher(),
    attemptId: createIds(systemRandom()).uuid(),
    send: send ?? ((frame) => frames.push(decodeFrame(frame))),
    onFault: (thrown) => faults.push(thrown),
  });
  return { clock, frames, faults, writer };
};

const text = (value: string): CompletionEvent => ({ type: "text", text: value });
const plain = (frame: Frame | undefined): Uint8Array => frame?.sealed.subarray(0, -16) ?? new Uint8Array();
const eventsOf = (frames: readonly Frame[]): CompletionEvent[] =>
  frames.filter(({ kind }) => kind === FRAME_KIND.chunk).flatMap((frame) => decodeEvents(plain(frame)));

describe("a chunk writer", () => {
  test("sends what one turn brought as one frame", async () => {
    const { frames, writer } = openWriter();
    for (const word of ["one ", "two ", "three"]) writer.push([text(word)]);
    expect(frames).toEqual([]);
    await waitFor("the flush", () => frames.length > 0);
    expect(eventsOf(frames)).toEqual([text("one two three")]);
  });

  test("does not hold 1400 bytes, nor anything for 10 ms", async () => {
    const { clock, frames, writer } = openWriter();
    writer.push([text("x".repeat(CHUNK_FLUSH_BYTES))]);
    expect(frames.length).toBe(1);
    writer.push([text("a")]);
    await clock.advance(10);
    writer.push([text("b")]);
    expect(eventsOf(frames.slice(1))).toEqual([text("ab")]);
  });

  test("lets no terminal overtake a chunk, and sends nothing after it", async () => {
    const { frames, writer } = openWriter();
    writer.push([text("last words")]);
    expect(writer.finish(terminalOf())).toBe(true);
    writer.push([text("too late")]);
    expect(writer.finish(terminalOf())).toBe(false);
    expect(frames.map(({ kind }) => kind)).toEqual([FRAME_KIND.chunk, FRAME_KIND.terminal]);
    expect(decodeTerminal(plain(frames[1])).chunks).toBe(1);
    await new Promise((resolve) => {
      setImmediate(resolve);
    });
    expect(frames.length).toBe(2);
  });

  test("tells a failed send once and goes silent", () => {
    const { faults, writer } = openWriter(() => {
      throw new Error("no room");
    });
    writer.push([text("x".repeat(CHUNK_FLUSH_BYTES))]);
    writer.push([text("x".repeat(CHUNK_FLUSH_BYTES))]);
    expect(writer.finish(terminalOf())).toBe(false);
    expect(faults.length).toBe(1);
  });

  test("changes nothing but the cuts", () => {
    const event = fc.oneof(
      fc.record({
        type: fc.constantFrom("text" as const, "reasoning" as const),
        text: fc.string({ unit: "binary", maxLength: 400 }).map((value) => value.toWellFormed()),
      }),
      fc.record({ type: fc.constant("tool_call" as const), index: fc.nat(3), arguments: fc.string({ maxLength: 50 }) }),
    );
    fc.assert(
      fc.property(fc.array(fc.array(event, { maxLength: 6 }), { maxLength: 20 }), (pushes) => {
        const { frames, writer } = openWriter();
        for (const events of pushes) writer.push(events);
        writer.finish(terminalOf());
        expect(joined(eventsOf(frames))).toEqual(joined(pushes.flat()));
      }),
    );
  });
});

/** Neighbouring texts of one kind as one, empty ones gone: what a reader sees. */
const joined = (events: readonly CompletionEvent[]): CompletionEvent[] => {
  const result: CompletionEvent[] = [];
  for (const event of events) {
    const last = result.at(-1);
    if (event.type !== "tool_call" && last?.type === event.type)
      result[result.length - 1] = { type: event.type, text: last.text + event.text };
    else result.push(event);
  }
  return result;
};
