/** Keys and join tokens: shapes, checks, revocation that counts at once. */
import { describe, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { authenticateJoinToken, createJoinToken, revokeJoinToken } from "../../src/coordinator/accounts/join-tokens.ts";
import { authenticateKey, createKey, revokeKey } from "../../src/coordinator/accounts/keys.ts";
import { openStore } from "../../src/coordinator/store/open-store.ts";
import { createIds, systemRandom } from "../../src/core/ids.ts";
import { parseJoinToken } from "../../src/trust/tokens.ts";
import { createFakeClock } from "../support/fake-clock.ts";
import { faultOf } from "../support/fault-of.ts";
import { tempDir, type TempDir } from "../support/temp-dir.ts";

const setUp = (dir: TempDir) => {
  const clock = createFakeClock();
  return { clock, ids: createIds(systemRandom()), store: openStore({ clock }, `${dir.path}/coordinator.db`) };
};

const withKey = (authorization?: string): Request =>
  new Request("http://x/", authorization === undefined ? {} : { headers: { authorization } });

describe("keys", () => {
  test("have the published shapes, and only the digest of the whole secret is stored", async () => {
    await using dir = await tempDir();
    const deps = setUp(dir);
    const { key, id } = createKey(deps, { name: "laptop" });
    expect(key).toMatch(/^sk-db-[0-9a-f]{64}$/);
    expect(id).toMatch(/^key_[0-9a-f]{24}$/);
    const digest = createHash("sha256").update(key).digest("hex");
    expect(deps.store.keys.findBySecret(digest)).toMatchObject({ id, owner: "local", name: "laptop" });
    const label = deps.store.keys.list()[0]?.label ?? "";
    expect(label.startsWith(key.slice(0, 10)) && label.endsWith(key.slice(-4))).toBe(true);
    deps.store.close();
    expect((await Bun.file(`${dir.path}/coordinator.db`).text()).includes(key)).toBe(false);
  });

  test("are checked by the exact texts, and a revoked key fails from the next request on", async () => {
    await using dir = await tempDir();
    const deps = setUp(dir);
    const { key, id } = createKey(deps, { name: "" });
    expect(authenticateKey(deps, withKey(`Bearer ${key}`)).id).toBe(id);
    expect(authenticateKey(deps, withKey(`bearer ${key}`)).id).toBe(id);
    const missing = "missing credentials — use Authorization: Bearer <token>";
    for (const header of [undefined, "", "Bearer", "Bearer ", `Basic ${key}`])
      expect(faultOf(() => authenticateKey(deps, withKey(header)))).toMatchObject({
        code: "unauthenticated",
        status: 401,
        message: missing,
      });
    for (const wrong of ["sk-db-1", `${key}0`, key.slice(0, -1), "x".repeat(4_000)])
      expect(faultOf(() => authenticateKey(deps, withKey(`Bearer ${wrong}`))).message).toStartWith("invalid API key");
    revokeKey(deps, id);
    expect(faultOf(() => authenticateKey(deps, withKey(`Bearer ${key}`))).code).toBe("unauthenticated");
    expect(faultOf(() => revokeKey(deps, "key_none")).code).toBe("not_found");
  });

  test("refuse names that are too long or hold control characters", async () => {
    await using dir = await tempDir();
    const deps = setUp(dir);
    for (const name of ["x".repeat(101), "a\nb"])
      expect(faultOf(() => createKey(deps, { name }))).toMatchObject({ code: "usage", param: "name" });
  });
});

describe("join tokens", () => {
  test("carry the coordinator's address, and open by the secret part alone", async () => {
    await using dir = await tempDir();
    const deps = setUp(dir);
    const address = { url: "ws://127.0.0.1:1/ws/provider", fingerprint: "0".repeat(32) };
    const { token, id, expires_at } = createJoinToken(deps, {}, address);
    expect(expires_at).toBeNull();
    expect(id).toMatch(/^jt_[0-9a-f]{24}$/);
    expect(token).toMatch(/^jt-db-[0-9a-f]{64}\./);
    expect(parseJoinToken(token)).toMatchObject(address);
    expect(authenticateJoinToken(deps, token)).toMatchObject({ id, models: null });
    expect(authenticateJoinToken(deps, token.split(".")[0] ?? "").id).toBe(id);
  });

  test("expire and are revoked", async () => {
    await using dir = await tempDir();
    const deps = setUp(dir);
    const expiresAtMs = deps.clock.nowMs() + 1_000;
    const brief = createJoinToken(deps, { expiresAtMs, models: ["a", "b"] }, {});
    expect(brief.expires_at).toBe(new Date(expiresAtMs).toISOString());
    expect(authenticateJoinToken(deps, brief.token).models).toEqual(["a", "b"]);
    await deps.clock.advance(1_000);
    expect(faultOf(() => authenticateJoinToken(deps, brief.token)).reason).toBe("join_token_expired");
    const other = createJoinToken(deps, {}, {});
    revokeJoinToken(deps, other.id);
    for (const text of [other.token, "jt-db-1", "", "nonsense"])
      expect(faultOf(() => authenticateJoinToken(deps, text)).reason).toBe("join_token_invalid");
    expect(faultOf(() => revokeJoinToken(deps, "jt_none")).code).toBe("not_found");
  });

  test("refuse dates that have passed and model ids that are none", async () => {
    await using dir = await tempDir();
    const deps = setUp(dir);
    for (const expiresAtMs of [0, deps.clock.nowMs(), Number.NaN, 1e300])
      expect(faultOf(() => createJoinToken(deps, { expiresAtMs }, {})).param).toBe("expires_at");
    for (const models of [[], [""], ["a\nb"]])
      expect(faultOf(() => createJoinToken(deps, { models }, {})).param).toBe("models");
  });
});
