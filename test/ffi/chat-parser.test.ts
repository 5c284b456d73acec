/** Tool-call headers and the plain-text shortcut, without the library. */
import { describe, expect, test } from "bun:test";
import { isPlainText, ToolCallHeaders } from "../../ffi/chat-parser.ts";

const call = (index: number, name: string, args: string, id = "") => ({ index, id, name, arguments: args });

describe("tool call headers", () => {
  test("a name that grows leaves once, whole, with the first arguments", () => {
    const headers = new ToolCallHeaders(() => "new");
    expect(headers.toEvents([call(0, "get", "")], false)).toEqual([]);
    expect(headers.toEvents([call(0, "get_weather", "")], false)).toEqual([]);
    expect(headers.toEvents([call(0, "", "{")], false)).toEqual([
      { type: "tool_call", index: 0, id: "new", name: "get_weather", arguments: "{" },
    ]);
    expect(headers.toEvents([call(0, "get_weather", "}")], false)).toEqual([
      { type: "tool_call", index: 0, arguments: "}" },
    ]);
    expect(headers.toEvents([], true)).toEqual([]);
  });

  test("a call without arguments leaves before what follows it, or at the end", () => {
    let made = 0;
    const headers = new ToolCallHeaders(() => `id${(made += 1)}`);
    expect(headers.toEvents([call(0, "one", ""), call(1, "two", "", "own")], false)).toEqual([
      { type: "tool_call", index: 0, id: "id1", name: "one", arguments: "" },
    ]);
    expect(headers.toEvents([{ text: "after" }], false)).toEqual([
      { type: "tool_call", index: 1, id: "own", name: "two", arguments: "" },
      { type: "text", text: "after" },
    ]);
    expect(headers.toEvents([call(2, "three", ""), { reasoning: "hm" }], true).map((event) => event.type)).toEqual([
      "tool_call",
      "reasoning",
    ]);
    expect(made).toBe(2);
  });

  test("the end releases a waiting header", () => {
    const headers = new ToolCallHeaders(() => "x");
    expect(headers.toEvents([call(0, "f", "")], true)).toEqual([
      { type: "tool_call", index: 0, id: "x", name: "f", arguments: "" },
    ]);
  });
});

describe("plain text", () => {
  const spec = (parsers: readonly unknown[], root: number) => ({
    format: 2,
    generationPrompt: "<a>",
    toolCalls: false,
    arena: JSON.stringify({ parsers, rules: {}, root }),
  });
  const rest = { type: "until", delimiters: [] };
  const content = { type: "tag", child: 0, tag: "content" };

  test("only a parser that takes everything after the prompt as text", () => {
    const literal = { type: "literal", literal: "<a>" };
    const end = { type: "end" };
    const sequence = (children: readonly number[]) => ({ type: "sequence", children });
    expect(isPlainText({ ...spec([], 0), arena: "" })).toBe(true);
    expect(isPlainText(spec([rest, content, end, sequence([1, 2])], 3))).toBe(true);
    expect(isPlainText(spec([rest, content, literal, sequence([2, 1])], 3))).toBe(true);
    expect(isPlainText(spec([rest, content, { ...literal, literal: "<b>" }, sequence([2, 1])], 3))).toBe(false);
    expect(isPlainText(spec([{ ...rest, delimiters: ["<"] }, content], 1))).toBe(false);
    expect(isPlainText(spec([rest, { ...content, tag: "reasoning" }], 1))).toBe(false);
    expect(isPlainText(spec([rest, content, { type: "choice", children: [1] }], 2))).toBe(false);
    expect(isPlainText(spec([rest, content, { type: "space" }, sequence([2, 1])], 3))).toBe(false);
    expect(isPlainText(spec([rest, content, sequence([1, 1])], 2))).toBe(false);
    expect(isPlainText(spec([sequence([0])], 0))).toBe(false);
  });
});
