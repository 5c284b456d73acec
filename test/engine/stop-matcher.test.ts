/** Stop strings and characters come out the same however the pieces are cut. */
import { describe, expect, test } from "bun:test";
import * as fc from "fast-check";
import { completeText, StopMatcher, Utf8Stream } from "../../src/engine/stop-matcher.ts";

/** The definition, one character at a time: end at the first stop string that is complete, the longest of them. */
const reference = (text: string, stops: readonly string[]): { text: string; stopped: boolean } => {
  for (let end = 1; end <= text.length; end += 1) {
    const matches = stops.filter((stop) => stop !== "" && text.slice(0, end).endsWith(stop));
    const longest = Math.max(0, ...matches.map((stop) => stop.length));
    if (longest > 0) return { text: text.slice(0, end - longest), stopped: true };
  }
  return { text, stopped: false };
};

const cut = <T extends string | Uint8Array>(whole: T, cuts: readonly number[]): T[] => {
  const borders = [0, ...cuts.map((at) => at % (whole.length + 1)).sort((a, b) => a - b), whole.length];
  return borders.slice(1).map((end, index) => whole.slice(borders[index], end) as T);
};

describe("stop matcher", () => {
  test("any cut gives what the definition gives, and never shows more than it may", () => {
    const letters = fc.string({ unit: fc.constantFrom("a", "b", "é", "🦊"), maxLength: 24 });
    const stop = fc.string({ unit: fc.constantFrom("a", "b", "é", "🦊"), maxLength: 5 });
    fc.assert(
      fc.property(
        letters,
        fc.array(stop, { maxLength: 16 }),
        fc.array(fc.nat(), { maxLength: 12 }),
        (text, stops, cuts) => {
          const matcher = new StopMatcher(stops);
          const expected = reference(text, stops);
          let seen = "";
          let stopped = false;
          for (const piece of cut(text, cuts)) {
            const match = matcher.push(piece);
            seen += match.text;
            stopped = match.stopped;
            expect(expected.text.startsWith(seen)).toBe(true);
          }
          seen += matcher.flush();
          expect({ text: seen, stopped }).toEqual(expected);
        },
      ),
      { numRuns: 2000 },
    );
  });

  test("it holds back possible beginnings only", () => {
    const matcher = new StopMatcher(["<end>"]);
    expect(matcher.push("one <e")).toEqual({ text: "one ", stopped: false });
    expect(matcher.push("gg> two")).toEqual({ text: "<egg> two", stopped: false });
    expect(matcher.push("<end")).toEqual({ text: "", stopped: false });
    expect(matcher.push("> three")).toEqual({ text: "", stopped: true });
    expect(matcher.push("more")).toEqual({ text: "", stopped: true });
    expect(matcher.flush()).toBe("");
  });
});

describe("utf-8 stream", () => {
  const bytes = fc.oneof(
    fc.string({ unit: "binary" }).map((text) => new TextEncoder().encode(text)),
    fc.uint8Array({ maxLength: 24 }),
    fc
      .array(fc.constantFrom(0x41, 0x80, 0xbf, 0xc3, 0xe2, 0x82, 0xf0, 0x9f, 0xa6, 0x8a, 0xff))
      .map((all) => Uint8Array.from(all)),
  );

  test("any cut gives the text of the whole, invalid bytes as U+FFFD", () => {
    fc.assert(
      fc.property(bytes, fc.array(fc.nat(), { maxLength: 12 }), (whole, cuts) => {
        const stream = new Utf8Stream();
        let text = "";
        for (const piece of cut(whole, cuts)) {
          // The engine's short cut: a piece that is whole text needs no decoder while nothing is pending.
          const complete = completeText(piece);
          text += complete !== null && stream.clean ? complete : stream.push(piece);
        }
        text += stream.flush();
        expect(text).toBe(new TextDecoder("utf-8", { ignoreBOM: true }).decode(whole));
        expect(text.isWellFormed()).toBe(true);
      }),
      { numRuns: 3000 },
    );
  });

  test("an unfinished character at the end is one U+FFFD", () => {
    const stream = new Utf8Stream();
    expect(stream.push(Uint8Array.of(0x61, 0xe2, 0x82))).toBe("a");
    expect(stream.flush()).toBe("\ufffd");
  });
});
