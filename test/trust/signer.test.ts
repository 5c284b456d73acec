/** The identity key file: created whole and private, refused when others can read it or it holds something else. */
import { describe, expect, test } from "bun:test";
import { generateKeyPairSync } from "node:crypto";
import { chmodSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fingerprintOf, verifyJws } from "../../src/trust/jws.ts";
import { openSoftwareSigner } from "../../src/trust/signer.ts";
import { tempDir } from "../support/temp-dir.ts";
import { rejectionOf } from "../support/rejection.ts";

const TYPE = "darkbloom-statement+jws";

describe("a software key", () => {
  test("is created once, private, with nothing left beside it", async () => {
    await using dir = await tempDir();
    const path = join(dir.path, "home", "identity.key");
    const first = await openSoftwareSigner(path);
    expect(statSync(path).mode & 0o777).toBe(0o600);
    expect(statSync(join(dir.path, "home")).mode & 0o777).toBe(0o700);
    expect(readdirSync(join(dir.path, "home"))).toEqual(["identity.key"]);
    expect(readFileSync(path, "utf8")).toStartWith("-----BEGIN PRIVATE KEY-----");
    const again = await openSoftwareSigner(path);
    expect(again.publicKey).toBe(first.publicKey);
    expect(first.publicKey).toMatch(/^B[\w-]{86}$/);
    expect(first.fingerprint).toMatch(/^[0-9a-f]{32}$/);
    expect(first.fingerprint).toBe(fingerprintOf(first.publicKey));
  });

  test("is the same for all who create it at once", async () => {
    await using dir = await tempDir();
    const path = join(dir.path, "identity.key");
    const signers = await Promise.all(Array.from({ length: 8 }, () => openSoftwareSigner(path)));
    expect(new Set(signers.map((signer) => signer.publicKey)).size).toBe(1);
  });

  test("signs what the same key opened later verifies", async () => {
    await using dir = await tempDir();
    const path = join(dir.path, "identity.key");
    const jws = await (await openSoftwareSigner(path)).signJws(TYPE, '{"a":"é"}');
    const { publicKey } = await openSoftwareSigner(path);
    expect(await verifyJws({ type: TYPE, jws, identityKey: publicKey })).toBe('{"a":"é"}');
  });
});

describe("a key file is refused", () => {
  test.each([0o640, 0o604, 0o660, 0o644])("with mode %o", async (mode) => {
    await using dir = await tempDir();
    const path = join(dir.path, "identity.key");
    await openSoftwareSigner(path);
    chmodSync(path, mode);
    expect(await rejectionOf(openSoftwareSigner(path))).toMatchObject({
      code: "config_invalid",
      hint: `chmod 600 ${path}`,
    });
  });

  const pem = (type: "p384" | "rsa" | "ed25519"): string => {
    const options = {
      privateKeyEncoding: { type: "pkcs8", format: "pem" },
      publicKeyEncoding: { type: "spki", format: "pem" },
    } as const;
    if (type === "p384") return generateKeyPairSync("ec", { namedCurve: "P-384", ...options }).privateKey;
    if (type === "rsa") return generateKeyPairSync("rsa", { modulusLength: 2048, ...options }).privateKey;
    return generateKeyPairSync("ed25519", options).privateKey;
  };
  test.each([
    ["empty", ""],
    ["text", "hello"],
    [
      "a cut key",
      "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg\n-----END PRIVATE KEY-----\n",
    ],
    ["a P-384 key", pem("p384")],
    ["an RSA key", pem("rsa")],
    ["an Ed25519 key", pem("ed25519")],
    ["too large", "x".repeat(5000)],
  ])("when it is %s", async (_name, content) => {
    await using dir = await tempDir();
    const path = join(dir.path, "identity.key");
    writeFileSync(path, content, { mode: 0o600 });
    expect(await rejectionOf(openSoftwareSigner(path))).toMatchObject({ code: "config_invalid" });
    expect(readFileSync(path, "utf8")).toBe(content);
  });

  test("when it is a folder, or its folder is a file", async () => {
    await using dir = await tempDir();
    mkdirSync(join(dir.path, "identity.key"), { mode: 0o700 });
    expect(await rejectionOf(openSoftwareSigner(join(dir.path, "identity.key")))).toMatchObject({
      code: "config_invalid",
    });
    writeFileSync(join(dir.path, "file"), "");
    expect(await rejectionOf(openSoftwareSigner(join(dir.path, "file", "identity.key")))).toMatchObject({
      code: "io_failed",
    });
  });
});
