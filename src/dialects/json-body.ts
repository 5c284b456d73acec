/** Untrusted bytes become one JSON object, with bounds on depth and size checked before the parser allocates anything. */
import { Fault } from "../core/fault.ts";

/** Any JSON value that came through a door. */
export type Json = null | boolean | number | string | readonly Json[] | { readonly [key: string]: Json };
export type JsonObject = { readonly [key: string]: Json };

/** Deeper bodies are refused: the deepest legal place is a tool schema (64 levels, five levels down). */
export const JSON_DEPTH_MAX = 128;
/** 16 MiB of `{},{},…` would parse into a gigabyte; a real request has a few thousand values, the rest is text. */
export const JSON_VALUES_MAX = 250_000;

const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const COMMA = 0x2c;
const BRACKET_OPEN = 0x5b;
const BRACKET_CLOSE = 0x5d;
const BRACE_OPEN = 0x7b;
const BRACE_CLOSE = 0x7d;

const refuse = (why: string): Fault => new Fault("bad_request", `invalid JSON: ${why}`);

/** Position after the string that starts behind `start`; jumps from quote to quote, so long texts cost next to nothing. */
const skipString = (bytes: Uint8Array, start: number): number => {
  let at = start;
  for (;;) {
    const quote = bytes.indexOf(QUOTE, at);
    if (quote < 0) return bytes.length;
    let before = quote - 1;
    while (before >= start && bytes[before] === BACKSLASH) before -= 1;
    if ((quote - before) % 2 === 1) return quote + 1;
    at = quote + 1;
  }
};

/** Bounds what JSON.parse would build. Bytes that are no JSON pass here and fail there. */
const checkStructure = (bytes: Uint8Array): void => {
  let depth = 0;
  let values = 1;
  let at = 0;
  while (at < bytes.length) {
    const byte = bytes[at];
    at += 1;
    if (byte === QUOTE) at = skipString(bytes, at);
    else if (byte === COMMA) values += 1;
    else if (byte === BRACE_OPEN || byte === BRACKET_OPEN) {
      depth += 1;
      values += 1;
      if (depth > JSON_DEPTH_MAX) throw refuse(`nested deeper than ${JSON_DEPTH_MAX} levels`);
    } else if (byte === BRACE_CLOSE || byte === BRACKET_CLOSE) depth -= 1;
    if (values > JSON_VALUES_MAX) throw refuse(`more than ${JSON_VALUES_MAX} values`);
  }
};

const decodeUtf8 = (bytes: Uint8Array): string => {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    throw refuse("the body is not UTF-8");
  }
};

/**
 * Exactly one JSON object; of a repeated key the last wins. Throws `bad_request` "invalid JSON: …", which never quotes
 * the body (the parser's own message would).
 */
export const decodeJsonObject = (bytes: Uint8Array): JsonObject => {
  if (bytes.length === 0) throw refuse("the body is empty");
  checkStructure(bytes);
  const text = decodeUtf8(bytes);
  let value: Json;
  try {
    value = JSON.parse(text) as Json;
  } catch {
    throw refuse("not one well-formed JSON value");
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw refuse("not an object");
  return value as JsonObject;
};
