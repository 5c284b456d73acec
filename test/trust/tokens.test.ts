/** Join tokens and the handling of secrets. */
import { describe, expect, test } from "bun:test";
import * as fc from "fast-check";
import { Fault } from "../../src/core/fault.ts";
import { hashSecret, labelOf, makeJoinToken, parseJoinToken } from "../../src/trust/tokens.ts";

const SECRET = `jt-db-${"0123456789abcdef".repeat(4)}`;
const encode = (hints: unknown): string => Buffer.from(JSON.stringify(hints)).toString("base64url");

describe("a join token", () => {
  test("is its secret alone, or with where and whom to join", () => {
    expect(makeJoinToken({ secret: SECRET })).toBe(SECRET);
    expect(parseJoinToken(` ${SECRET}\n`)).toEqual({ secret: SECRET });
    for (const token of [
      { secret: SECRET, url: "ws://127.0.0.1:8080/ws/provider", fingerprint: "ab".repeat(16) },
      { secret: SECRET, url: "https://example.org" },
      { secret: SECRET, fingerprint: "ab".repeat(16) },
    ]) {
      expect(makeJoinToken(token)).toStartWith(`${SECRET}.`);
      expect(parseJoinToken(makeJoinToken(token))).toEqual(token);
    }
  });

  test("may carry hints this version does not know", () => {
    expect(parseJoinToken(`${SECRET}.${encode({ u: "wss://a.b", later: 1 })}`)).toEqual({
      secret: SECRET,
      url: "wss://a.b",
    });
  });

  test.each([
    "",
    "jt-db-",
    SECRET.slice(0, -1),
    `${SECRET}0`,
    SECRET.toUpperCase(),
    `sk-db-${"0".repeat(64)}`,
    `${SECRET}.`,
    `${SECRET}.not-json`,
    `${SECRET}.${encode({})}.x`,
    `${SECRET}.${encode([])}x`,
    `${SECRET}.${encode({ u: "file:///etc/passwd" })}`,
    `${SECRET}.${encode({ u: "not a url" })}`,
    `${SECRET}.${encode({ f: "xyz" })}`,
    `${SECRET}.${encode({ u: `ws://${"x".repeat(5000)}` })}`,
  ])("%# of the bad ones is refused without being quoted", (text) => {
    let fault: unknown;
    try {
      parseJoinToken(text);
    } catch (thrown) {
      fault = thrown;
    }
    if (!(fault instanceof Fault)) throw new Error("no fault");
    expect(fault).toMatchObject({ code: "usage", message: "this is not a join token" });
    expect(fault.cause).toBeUndefined();
  });

  test("of any text is parsed or refused, nothing else", () => {
    fc.assert(
      fc.property(fc.string(), (text) => {
        for (const candidate of [text, `${SECRET}.${text}`, `${SECRET}.${encode(text)}`])
          try {
            parseJoinToken(candidate);
          } catch (thrown) {
            if (!(thrown instanceof Fault)) throw thrown;
          }
      }),
    );
  });
});

describe("secrets", () => {
  test("are stored as the SHA-256 of their whole text", () => {
    // Published vector of SHA-256 for the text "abc" (FIPS 180-2, B.1).
    expect(hashSecret("abc")).toBe("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  });
  test("are shown by their ends", () => {
    expect(labelOf(SECRET)).toBe("jt-db-0123…cdef");
  });
});
