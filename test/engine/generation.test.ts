/** One answer from tokens to events: marks stay hidden, ends are named, tokens are counted by what they became. */
import { expect, test } from "bun:test";
import type { CompletionEvent } from "../../src/core/completion.ts";
import { Generation, type GenerationSpec } from "../../src/engine/generation.ts";
import { PieceTexts } from "../../src/engine/piece-texts.ts";

/** Token → bytes; 0 is the end-of-turn mark, 1 a mark the parser must see. */
const BYTES = ["<end>", "<tool>", "hello", " ", "wor", "ld"].map((text) => new TextEncoder().encode(text));
const FOX = new TextEncoder().encode("🦊");
const PIECES = [...BYTES, FOX.slice(0, 2), FOX.slice(2), Uint8Array.of(0xff)];
const [FOX_START, FOX_END, INVALID] = [6, 7, 8];

const pieces = new PieceTexts({
  vocabSize: PIECES.length,
  piece: (token, options) => (token < 2 && options?.special !== true ? new Uint8Array() : (PIECES[token] ?? FOX)),
});

const open = (spec: Partial<GenerationSpec> = {}): Generation =>
  new Generation({
    promptTokens: 3,
    tokensMax: 100,
    stops: [],
    ignoreEos: false,
    preservedTokens: new Set(),
    parser: null,
    pieces,
    isEog: (token) => token === 0,
    ...spec,
  });

const runAll = (generation: Generation, tokens: readonly number[]) => {
  const events: CompletionEvent[] = [];
  for (const token of tokens) {
    const step = generation.accept(token);
    events.push(...step.events);
    if (step.finishReason !== null) return { events, finishReason: step.finishReason };
  }
  return { events, finishReason: null };
};

const textOf = (events: readonly CompletionEvent[]): string =>
  events.map((event) => (event.type === "text" ? event.text : "")).join("");

test("the end mark ends the answer, is counted and not shown", () => {
  const generation = open();
  const { events, finishReason } = runAll(generation, [2, 3, 4, 5, 0]);
  expect([textOf(events), finishReason]).toEqual(["hello world", "stop"]);
  expect(generation.usage).toEqual({ promptTokens: 3, completionTokens: 5, reasoningTokens: 0, cachedTokens: 0 });
});

test("a character of two tokens comes out whole; half of one at the bound is one U+FFFD", () => {
  expect(open().accept(FOX_START).events).toEqual([]);
  expect(textOf(runAll(open(), [FOX_START, FOX_END]).events)).toBe("🦊");
  const cut = runAll(open({ tokensMax: 2 }), [2, FOX_START]);
  expect([textOf(cut.events), cut.finishReason]).toEqual(["hello\ufffd", "length"]);
  expect(textOf(runAll(open({ tokensMax: 2 }), [INVALID, 2]).events)).toBe("\ufffdhello");
});

test("a stop text across tokens is not shown; half of one at the end is", () => {
  const stopped = runAll(open({ stops: ["o w"] }), [2, 3, 4, 5]);
  expect([textOf(stopped.events), stopped.finishReason]).toEqual(["hell", "stop"]);
  expect(textOf(runAll(open({ stops: ["o x"] }), [2, 3, 0]).events)).toBe("hello ");
});

test("a mark is shown to the parser only where the template asks for it", () => {
  const seen: string[] = [];
  const parser = { push: (delta: string): CompletionEvent[] => (seen.push(delta), []) };
  runAll(open({ parser, preservedTokens: new Set([1]) }), [1, 2, 0]);
  runAll(open({ parser }), [1, 2, 0]);
  expect(seen).toEqual(["<tool>", "hello", "", "hello", ""]);
});

test("tokens that became reasoning are counted apart, and a tool call names the end", () => {
  const scripted: CompletionEvent[][] = [
    [],
    [{ type: "reasoning", text: "hm" }],
    [],
    [{ type: "tool_call", index: 0, id: "a", name: "f", arguments: "{}" }],
    [],
  ];
  const parser = { push: (): CompletionEvent[] => scripted.shift() ?? [] };
  const generation = open({ parser });
  expect(runAll(generation, [2, 2, 2, 2, 0]).finishReason).toBe("tool_calls");
  expect(generation.usage).toMatchObject({ completionTokens: 5, reasoningTokens: 2 });
});
