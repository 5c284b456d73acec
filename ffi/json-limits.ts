/** Bounds on consumer JSON before it reaches native code, whose parsers and renderers recurse and would overflow their stack. */
import { Fault } from "../src/core/fault.ts";
import { KIB } from "../src/core/units.ts";

/** Deepest nesting of messages and tools. */
export const JSON_DEPTH_MAX = 64;
/** Values in all tool arguments and results of one request; upstream makes an object of each: 7 million took it 13 s. */
export const TEXT_VALUES_MAX = 100_000;
/** Largest single tool as JSON text. */
export const TOOL_BYTES_MAX = 256 * KIB;
/** Most tools of one request; each becomes rules of the grammar. */
export const TOOLS_MAX = 128;

/**
 * Bound on Σ keys² over all objects of all tools. Upstream's grammar for an object of n optional properties takes n² steps: 512
 * take 0.3 s, 3,000 more than 40 s, and the whole step loop waits.
 */
export const TOOL_KEYS_SQUARED_MAX = 131_072;
/** The same for arrays, such as a list of types: 5,000 items take 1.7 s. */
export const TOOL_ITEMS_SQUARED_MAX = 32 * TOOL_KEYS_SQUARED_MAX;

const isContainer = (value: unknown): value is object => typeof value === "object" && value !== null;

/** True when arrays and objects nest at most `depthMax` deep. Walks level by level, so depth costs no stack. */
export const nestsAtMost = (value: unknown, depthMax: number): boolean => {
  let level = [value].filter(isContainer);
  for (let depth = 0; level.length > 0; depth += 1) {
    if (depth === depthMax) return false;
    level = level.flatMap((container) => Object.values(container).filter(isContainer));
  }
  return true;
};

/** Σ size² over all objects, or all arrays, of a value that is known not to be deep. */
const sizesSquared = (value: unknown, ofArrays: boolean): number => {
  if (!isContainer(value)) return 0;
  const items = Object.values(value);
  const own = Array.isArray(value) === ofArrays ? items.length ** 2 : 0;
  return items.reduce<number>((sum, item) => sum + sizesSquared(item, ofArrays), own);
};

/** How deep the brackets of a text nest, and how many values it holds at most. */
export interface TextShape {
  readonly depth: number;
  readonly values: number;
}

/**
 * Shape of a text that native code may read as JSON (tool-call arguments and tool results travel as text). What stands inside
 * JSON strings does not count; for other texts the numbers are upper bounds of what a parser could meet.
 */
export const shapeOf = (text: string): TextShape => {
  let depth = 0;
  let deepest = 0;
  let values = 1;
  let quoted = false;
  for (let index = 0; index < text.length; index += 1) {
    const char = text.charCodeAt(index);
    if (quoted) {
      if (char === 0x5c) index += 1;
      else if (char === 0x22) quoted = false;
    } else if (char === 0x22) quoted = true;
    else if (char === 0x2c) values += 1;
    else if (char === 0x7b || char === 0x5b) {
      values += 1;
      deepest = Math.max(deepest, (depth += 1));
    } else if (char === 0x7d || char === 0x5d) depth -= 1;
  }
  return { depth: deepest, values };
};

const refuse = (message: string, param: string): never => {
  throw new Fault("bad_request", message, { param, reason: "too_complex" });
};

/** Returns how many values native code may make of the message's tool arguments and results. */
const checkMessage = (message: unknown): number => {
  if (!isContainer(message)) return refuse("messages must be objects", "messages");
  const fields = message as { readonly role?: unknown; readonly content?: unknown; readonly tool_calls?: unknown };
  const calls = Array.isArray(fields.tool_calls) ? fields.tool_calls : [];
  const texts: unknown[] = calls.map(
    (call: { readonly function?: { readonly arguments?: unknown } } | null) => call?.function?.arguments,
  );
  if (fields.role === "tool") texts.push(fields.content);
  let values = 0;
  for (const text of texts) {
    if (typeof text !== "string") continue;
    const shape = shapeOf(text);
    if (shape.depth > JSON_DEPTH_MAX)
      refuse(`tool arguments and results nest deeper than ${JSON_DEPTH_MAX}`, "messages");
    values += shape.values;
  }
  return values;
};

/** Throws `bad_request` for messages that are too deep, or whose tool arguments and results hold too many values. */
export const checkMessages = (messages: readonly unknown[]): void => {
  if (!nestsAtMost(messages, JSON_DEPTH_MAX)) refuse(`messages nest deeper than ${JSON_DEPTH_MAX}`, "messages");
  let values = 0;
  for (const message of messages) values += checkMessage(message);
  if (values > TEXT_VALUES_MAX)
    refuse(`tool arguments and results hold more than ${TEXT_VALUES_MAX} values`, "messages");
};

/** Throws `bad_request` for tools that are too many, too deep or too large. */
export const checkTools = (tools: readonly unknown[]): void => {
  if (tools.length > TOOLS_MAX) refuse(`at most ${TOOLS_MAX} tools`, "tools");
  for (const tool of tools) {
    if (!nestsAtMost(tool, JSON_DEPTH_MAX)) refuse(`a tool nests deeper than ${JSON_DEPTH_MAX}`, "tools");
    if (Buffer.byteLength(JSON.stringify(tool)) > TOOL_BYTES_MAX)
      refuse(`a tool is larger than ${TOOL_BYTES_MAX / KIB} KiB`, "tools");
  }
  if (sizesSquared(tools, false) > TOOL_KEYS_SQUARED_MAX) refuse("the tools have too many properties", "tools");
  if (sizesSquared(tools, true) > TOOL_ITEMS_SQUARED_MAX) refuse("the tools have too long lists", "tools");
};
