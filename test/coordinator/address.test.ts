/** The URLs that go into ready-made lines and join tokens. */
import { describe, expect, test } from "bun:test";
import { addressOf } from "../../src/coordinator/address.ts";
import { makeJoinToken, parseJoinToken } from "../../src/trust/tokens.ts";
import { faultOf } from "../support/fault-of.ts";

const own = { host: "127.0.0.1", publicUrl: null, tlsCert: null };
const secret = `jt-db-${"0".repeat(64)}`;

describe("address", () => {
  test.each([
    [own, "http://127.0.0.1:80", "ws://127.0.0.1:80/ws/provider"],
    [{ ...own, tlsCert: "pem" }, "https://127.0.0.1:80", "wss://127.0.0.1:80/ws/provider"],
    [{ ...own, host: "::1" }, "http://[::1]:80", "ws://[::1]:80/ws/provider"],
    [{ ...own, publicUrl: "https://a.example/base/" }, "https://a.example/base", "wss://a.example/base/ws/provider"],
  ])("%j", (options, url, providerUrl) => {
    expect(addressOf(options, 80)).toEqual({ url, providerUrl });
    expect(parseJoinToken(makeJoinToken({ secret, url: providerUrl })).url).toBe(providerUrl);
  });

  test.each(["a.example", "a.example:8080", "ftp://a.example", "https://a.example/?x=1", "https://", "https://a#b"])(
    "%s is no public URL",
    (publicUrl) => {
      expect(faultOf(() => addressOf({ ...own, publicUrl }, 80)).code).toBe("config_invalid");
    },
  );
});
