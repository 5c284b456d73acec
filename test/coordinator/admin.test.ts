/** The owner's operations: through the running coordinator's socket, and on the database when none runs. */
import { describe, expect, test } from "bun:test";
import { existsSync, statSync, writeFileSync } from "node:fs";
import { openAdmin } from "../../src/coordinator/admin/client.ts";
import { startAdminServer } from "../../src/coordinator/admin/server.ts";
import { openStore } from "../../src/coordinator/store/open-store.ts";
import { systemClock } from "../../src/core/clock.ts";
import { Fault } from "../../src/core/fault.ts";
import { createIds, systemRandom } from "../../src/core/ids.ts";
import { createLog } from "../../src/core/log.ts";
import { parseJoinToken } from "../../src/trust/tokens.ts";
import { tempDir } from "../support/temp-dir.ts";

const deps = () => {
  const clock = systemClock();
  const lines: string[] = [];
  const log = createLog({ clock, level: "debug", format: "json", write: (line) => lines.push(line) });
  return { clock, ids: createIds(systemRandom()), log, lines };
};

const rejection = (promise: Promise<unknown>): Promise<unknown> =>
  promise.then(
    () => null,
    (thrown: unknown) => thrown,
  );

describe("admin", () => {
  test("works on the database before a coordinator runs, and through it at once while it runs", async () => {
    await using dir = await tempDir();
    const parts = deps();
    using admin = openAdmin(parts, dir.path, { url: "ws://before:1/ws/provider" });
    const before = await admin.createKey({ name: "before" });
    expect(parseJoinToken((await admin.createJoinToken({})).token).url).toBe("ws://before:1/ws/provider");
    using store = openStore(parts, `${dir.path}/coordinator.db`);
    const address = { url: "ws://now:1/ws/provider", fingerprint: "1".repeat(32) };
    const server = await startAdminServer(
      { ...parts, store },
      { dataDir: dir.path, address, onTokenRevoked: () => undefined },
    );
    expect(statSync(`${dir.path}/admin.sock`).mode & 0o777).toBe(0o600);
    const during = await admin.createKey({ name: "during" });
    const token = await admin.createJoinToken({ models: ["m"], expiresAtMs: Date.now() + 60_000 });
    expect(parseJoinToken(token.token)).toMatchObject(address);
    expect((await admin.listJoinTokens())[0]).toMatchObject({
      id: token.id,
      models: ["m"],
      expires_at: token.expires_at,
    });
    expect((await admin.listKeys()).map(({ id }) => id).toSorted()).toEqual([before.id, during.id].toSorted());
    await admin.revokeKey(before.id);
    expect((await admin.listKeys()).find(({ id }) => id === before.id)).toMatchObject({ disabled: true });
    await admin.revokeJoinToken(token.id);
    expect(parts.lines.join("")).not.toContain(during.key);
    expect(await rejection(admin.revokeKey("key_none"))).toMatchObject({
      code: "not_found",
      hint: "darkbloom keys list",
    });
    expect(await rejection(admin.createKey({ name: "x".repeat(200) }))).toMatchObject({ code: "usage", param: "name" });
    await server?.stop();
    expect(existsSync(`${dir.path}/admin.sock`)).toBe(false);
    expect((await admin.listKeys()).length).toBe(2);
  });

  test("a second coordinator on the folder is refused, a socket left by a dead one is replaced", async () => {
    await using dir = await tempDir();
    const parts = deps();
    using store = openStore(parts, `${dir.path}/coordinator.db`);
    const input = { dataDir: dir.path, address: {}, onTokenRevoked: () => undefined };
    writeFileSync(`${dir.path}/admin.sock`, "");
    const server = await startAdminServer({ ...parts, store }, input);
    const second = await rejection(startAdminServer({ ...parts, store }, input));
    expect(second instanceof Fault && second.code).toBe("already_running");
    await server?.stop();
    const third = await startAdminServer({ ...parts, store }, input);
    await third?.stop();
  });

  test("of several that meet a dead socket at once one takes its place", async () => {
    await using dir = await tempDir();
    const parts = deps();
    using store = openStore(parts, `${dir.path}/coordinator.db`);
    writeFileSync(`${dir.path}/admin.sock`, "");
    const start = () =>
      startAdminServer({ ...parts, store }, { dataDir: dir.path, address: {}, onTokenRevoked: () => undefined });
    const started = await Promise.allSettled([start(), start(), start()]);
    const running = started.filter((result) => result.status === "fulfilled");
    for (const { value } of running) await value?.stop();
    expect(running.length).toBe(1);
    for (const result of started)
      if (result.status === "rejected") expect(result.reason).toMatchObject({ code: "already_running" });
  });

  test("nonsense on the socket is answered with a fault", async () => {
    await using dir = await tempDir();
    const parts = deps();
    using store = openStore(parts, `${dir.path}/coordinator.db`);
    const server = await startAdminServer(
      { ...parts, store },
      { dataDir: dir.path, address: {}, onTokenRevoked: () => undefined },
    );
    for (const body of [
      "",
      "{",
      "[]",
      '{"operation":"close","input":{}}',
      '{"operation":"createKey","input":{"name":1}}',
    ]) {
      const response = await fetch("http://localhost/", { unix: `${dir.path}/admin.sock`, method: "POST", body });
      expect(response.status).toBe(400);
      expect(await response.json()).toHaveProperty("fault.code", "usage");
    }
    await server?.stop();
  });
});
