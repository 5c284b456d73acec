/** Bodies in bounds, faults as responses, and the small header readers. */
import { describe, expect, test } from "bun:test";
import { Fault } from "../../src/core/fault.ts";
import {
  bearerToken,
  constantTimeEqual,
  faultResponse,
  jsonResponse,
  readBody,
  requestIdOf,
} from "../../src/core/http.ts";
import { createIds, systemRandom } from "../../src/core/ids.ts";

const LIMIT = 16 * 1024 * 1024;
const post = (body: string | ReadableStream<Uint8Array>, headers: Record<string, string> = {}) =>
  new Request("http://x/", { method: "POST", body, headers });

const faultFrom = async (action: Promise<unknown>): Promise<Fault> => {
  const thrown: unknown = await action.then(
    () => null,
    (rejected: unknown) => rejected,
  );
  if (thrown instanceof Fault) return thrown;
  throw new Error("no fault was thrown", { cause: thrown });
};

/** A body made on demand that counts what was taken from it; far above every cap it gives up. */
const endless = (chunkBytes: number) => {
  const seen = { takenBytes: 0, cancelled: false };
  const stream = new ReadableStream<Uint8Array>({
    pull(controller) {
      seen.takenBytes += chunkBytes;
      if (seen.takenBytes > 64 * 1024 * 1024) controller.close();
      else controller.enqueue(new Uint8Array(chunkBytes));
    },
    cancel() {
      seen.cancelled = true;
    },
  });
  return { seen, stream };
};

describe("readBody", () => {
  test("whole bodies, of one chunk, of many, of none", async () => {
    expect(new TextDecoder().decode(await readBody(post("hello"), 5))).toBe("hello");
    const parts = new ReadableStream<Uint8Array>({
      start(controller) {
        for (const part of ["a", "bc", "", "def"]) controller.enqueue(new TextEncoder().encode(part));
        controller.close();
      },
    });
    expect(new TextDecoder().decode(await readBody(post(parts), 100))).toBe("abcdef");
    expect(await readBody(new Request("http://x/"), 1)).toHaveLength(0);
  });

  test("Content-Length alone refuses, and the message names the limit", async () => {
    const fault = await faultFrom(readBody(post("x", { "content-length": String(LIMIT + 1) }), LIMIT));
    expect([fault.status, fault.message]).toEqual([413, "request body exceeds the 16777216-byte limit"]);
  });

  test("without a length the reading stops at the cap", async () => {
    const { seen, stream } = endless(64 * 1024);
    expect((await faultFrom(readBody(post(stream), 1024 * 1024))).code).toBe("payload_too_large");
    expect(seen.takenBytes).toBeLessThan(1024 * 1024 + 4 * 64 * 1024);
    expect(seen.cancelled).toBe(true);
  });

  test("a body that stops coming ends with the signal", async () => {
    const stalled = () => post(new ReadableStream<Uint8Array>({ pull: () => new Promise(() => undefined) }));
    const gone = new AbortController();
    const waiting = faultFrom(readBody(stalled(), 10, gone.signal));
    gone.abort();
    expect((await waiting).code).toBe("cancelled");
    expect((await faultFrom(readBody(stalled(), 10, AbortSignal.timeout(1)))).code).toBe("timeout");
    expect(await faultFrom(readBody(post("x"), 10, AbortSignal.abort(new Fault("interrupted", "bye"))))).toMatchObject({
      code: "interrupted",
    });
  });

  test("a 20 MB upload over a socket is refused in bounded memory, with and without a length", async () => {
    using server = Bun.serve({
      port: 0,
      hostname: "127.0.0.1",
      fetch: async (request) =>
        readBody(request, LIMIT).then(
          () => new Response("taken"),
          (thrown: unknown) => faultResponse(thrown as Fault),
        ),
    });
    const piece = new Uint8Array(1024 * 1024).fill(32);
    const upload = () => {
      let sent = 0;
      return new ReadableStream<Uint8Array>({
        pull(controller) {
          if (sent === 20) controller.close();
          else controller.enqueue(piece);
          sent += 1;
        },
      });
    };
    const before = process.memoryUsage().rss;
    for (let round = 0; round < 5; round += 1) {
      for (const body of [upload(), new Uint8Array(20_000_000)]) {
        const response = await fetch(server.url, { method: "POST", body });
        expect([response.status, await response.text()]).toEqual([413, expect.stringContaining("16777216-byte limit")]);
      }
    }
    Bun.gc(true);
    expect(process.memoryUsage().rss - before).toBeLessThan(200 * 1024 * 1024);
  });
});

describe("responses", () => {
  test("a fault: envelope, status, Retry-After, other headers", async () => {
    const response = faultResponse(new Fault("draining", "shutting down", { retryAfterMs: 2_100 }), {
      "x-request-id": "r",
    });
    expect([response.status, response.headers.get("retry-after"), response.headers.get("x-request-id")]).toEqual([
      429,
      "3",
      "r",
    ]);
    expect(response.headers.get("content-type")).toBe("application/json");
    expect(await response.json()).toEqual({
      error: { type: "rate_limit_exceeded", message: "shutting down", code: "rate_limit_exceeded", param: null },
    });
    expect(faultResponse(new Fault("bad_request", "no")).headers.get("retry-after")).toBeNull();
  });

  test("JSON with a status", async () => {
    const response = jsonResponse({ a: 1 }, { status: 503, headers: { "x-a": "b" } });
    expect([response.status, response.headers.get("x-a"), await response.json()]).toEqual([503, "b", { a: 1 }]);
  });
});

describe("headers", () => {
  test("request id: the caller's if sane, else twelve of 0-9a-v", () => {
    const ids = createIds(systemRandom());
    const given = (id: string) => requestIdOf(new Request("http://x/", { headers: { "x-request-id": id } }), ids);
    expect(given("abc-123_~!")).toBe("abc-123_~!");
    expect(given("a".repeat(128))).toBe("a".repeat(128));
    for (const bad of ["a".repeat(129), "a b", "é"]) expect(given(bad)).toMatch(/^[0-9a-v]{12}$/);
    expect(requestIdOf(new Request("http://x/"), ids)).toMatch(/^[0-9a-v]{12}$/);
  });

  test("bearer token", () => {
    const of = (authorization: string) => bearerToken(new Request("http://x/", { headers: { authorization } }));
    expect(["Bearer abc", "bearer  abc ", "BEARER abc"].map(of)).toEqual(["abc", "abc", "abc"]);
    expect(["Basic abc", "Bearer", "Bearer a b", "abc", `Bearer ${"a".repeat(4_097)}`].map(of)).toEqual([
      null,
      null,
      null,
      null,
      null,
    ]);
    expect(bearerToken(new Request("http://x/"))).toBeNull();
  });

  test("secrets compare by value", () => {
    expect([
      constantTimeEqual("a", "a"),
      constantTimeEqual("a", "b"),
      constantTimeEqual("a", "aa"),
      constantTimeEqual("", ""),
    ]).toEqual([true, false, false, true]);
  });
});
