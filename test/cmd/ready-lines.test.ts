/** Lines that a person pastes: a shell reads them as they were meant, and other machines can dial what they name. */
import { describe, expect, test } from "bun:test";
import { curlLine, shellWord } from "../../cmd/_program.ts";
import { addressOf } from "../../src/coordinator/address.ts";

/** What a shell makes of the words of a command line. */
const shellWords = (line: string, environment: Readonly<Record<string, string>> = {}): string[] => {
  const { stdout } = Bun.spawnSync(["sh", "-c", `for word in ${line}; do printf '%s\\0' "$word"; done`], {
    env: { ...environment },
  });
  return stdout.toString().split("\0").slice(0, -1);
};

describe("a ready-made line", () => {
  const target = { url: "http://127.0.0.1:1", model: "m" };

  test("carries a key as it is", () => {
    expect(shellWords(curlLine({ ...target, key: "sk-db-1" }))).toContain("Authorization: Bearer sk-db-1");
  });

  test("lets the shell fill in a key that was shown only once", () => {
    const words = shellWords(curlLine({ ...target, key: "$DARKBLOOM_KEY" }), { DARKBLOOM_KEY: "sk-db-2" });
    expect(words).toContain("Authorization: Bearer sk-db-2");
    expect(words.at(-1)).toStartWith('{"model":"m"');
  });

  test.each(["/plain/path", "/with space/ünï", "it's", "$HOME", "a;b"])("keeps the word %p whole", (word) => {
    expect(shellWords(shellWord(word), { HOME: "/elsewhere" })).toEqual([word]);
  });
});

test("a coordinator on every address names one that other machines can dial", () => {
  const entry = { netmask: "255.0.0.0", mac: "00:00:00:00:00:00", family: "IPv4" } as const;
  const interfaces = {
    lo: [{ ...entry, address: "127.0.0.1", internal: true, cidr: null }],
    en0: [{ ...entry, address: "192.168.1.7", internal: false, cidr: null }],
  };
  const options = { host: "0.0.0.0", publicUrl: null, tlsCert: null };
  expect(addressOf(options, 8080, interfaces).providerUrl).toBe("ws://192.168.1.7:8080/ws/provider");
  expect(addressOf(options, 8080, {}).url).toBe("http://0.0.0.0:8080");
  expect(addressOf({ ...options, host: "127.0.0.1" }, 8080, interfaces).url).toBe("http://127.0.0.1:8080");
});
