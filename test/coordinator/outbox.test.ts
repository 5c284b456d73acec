/** Backpressure towards a provider: the budget, and frames that Bun dropped. */
import { describe, expect, test } from "bun:test";
import { SOCKET_BUDGET_BYTES_MAX } from "../../src/core/limits.ts";
import { Outbox } from "../../src/coordinator/session/outbox.ts";
import { faultOf } from "../support/fault-of.ts";

const setUp = () => {
  const socket = {
    sent: [] as (string | Uint8Array)[],
    buffered: 0,
    answer: 1,
    sendText(text: string) {
      this.sent.push(text);
      return this.answer;
    },
    sendBinary(bytes: Uint8Array) {
      this.sent.push(bytes);
      return this.answer;
    },
    getBufferedAmount() {
      return this.buffered;
    },
  };
  let dropped = 0;
  const outbox = new Outbox(socket, () => {
    dropped += 1;
  });
  return { socket, outbox, dropped: () => dropped };
};

describe("outbox", () => {
  test("sends a request and its frames in order, also behind others", () => {
    const { socket, outbox, dropped } = setUp();
    socket.answer = -1;
    const frames = [new Uint8Array(1), new Uint8Array(2)];
    outbox.sendAll("request", frames);
    expect(socket.sent).toEqual(["request", ...frames]);
    expect(dropped()).toBe(0);
  });

  test("a request over the budget is refused before anything of it is sent, and the socket lives on", () => {
    const { socket, outbox, dropped } = setUp();
    socket.buffered = SOCKET_BUDGET_BYTES_MAX - 10;
    expect(faultOf(() => outbox.sendAll("request", [new Uint8Array(4)])).code).toBe("capacity");
    expect(socket.sent).toEqual([]);
    outbox.sendAll("request", [new Uint8Array(3)]);
    expect(socket.sent.length).toBe(2);
    expect(dropped()).toBe(0);
  });

  test("a control message that no longer fits gives the socket up", () => {
    const { socket, outbox, dropped } = setUp();
    socket.buffered = SOCKET_BUDGET_BYTES_MAX;
    outbox.sendText("cancel");
    outbox.sendText("cancel");
    expect(socket.sent).toEqual([]);
    expect(dropped()).toBe(1);
  });

  test("a dropped frame gives the socket up and fails the request, once", () => {
    const { socket, outbox, dropped } = setUp();
    socket.answer = 0;
    expect(faultOf(() => outbox.sendAll("request", [new Uint8Array(1)])).code).toBe("provider_failed");
    expect(socket.sent).toEqual(["request"]);
    outbox.sendText("more");
    expect(faultOf(() => outbox.sendAll("request", [])).code).toBe("capacity");
    expect(socket.sent.length).toBe(1);
    expect(dropped()).toBe(1);
  });
});
