/** The database: migrations, damage, newer schemas, two processes at once. */
import { Database } from "bun:sqlite";
import { describe, expect, test } from "bun:test";
import { statSync, writeFileSync } from "node:fs";
import { openStore } from "../../src/coordinator/store/open-store.ts";
import type { StoredKey } from "../../src/coordinator/store/store.ts";
import { faultOf } from "../support/fault-of.ts";
import { tempDir } from "../support/temp-dir.ts";

const deps = { clock: { nowMs: () => 1_000 } };

const aKey = (id: string): StoredKey => ({
  id,
  name: "n",
  owner: "local",
  label: "l",
  createdAtMs: 1,
  revokedAtMs: null,
});

const provider = {
  id: "prov_1",
  identityKey: "k",
  version: "0.1.0",
  chip: "c",
  machineModel: "m",
  trustLevel: "self_signed",
  seenAtMs: 5,
};

describe("store", () => {
  test("keeps keys across openings, and only the owner may read the file", async () => {
    await using dir = await tempDir();
    const path = `${dir.path}/sub/coordinator.db`;
    {
      using store = openStore(deps, path);
      store.keys.insert(aKey("key_1"), "digest");
    }
    expect(statSync(path).mode & 0o077).toBe(0);
    using again = openStore(deps, path);
    expect(again.keys.findBySecret("digest")).toEqual(aKey("key_1"));
    expect(again.keys.findBySecret("other")).toBeNull();
    expect(again.keys.revoke("key_1", 7)).toBe(true);
    expect(again.keys.revoke("key_1", 9)).toBe(true);
    expect(again.keys.list()).toMatchObject([{ id: "key_1", revokedAtMs: 7 }]);
    expect(again.keys.revoke("key_2", 9)).toBe(false);
  });

  test("lists the newest first", async () => {
    await using dir = await tempDir();
    using store = openStore(deps, `${dir.path}/coordinator.db`);
    for (const id of ["key_1", "key_2", "key_3"]) store.keys.insert(aKey(id), id);
    expect(store.keys.list().map(({ id }) => id)).toEqual(["key_3", "key_2", "key_1"]);
  });

  test("runs with the settings that durability needs", async () => {
    await using dir = await tempDir();
    const path = `${dir.path}/coordinator.db`;
    using _store = openStore(deps, path);
    using other = new Database(path);
    expect(other.query("PRAGMA journal_mode").get()).toEqual({ journal_mode: "wal" });
    expect(other.query("SELECT version FROM migrations").all()).toEqual([{ version: 1 }]);
  });

  test("pins a model once, for a provider that is known", async () => {
    await using dir = await tempDir();
    using store = openStore(deps, `${dir.path}/coordinator.db`);
    const pin = { modelId: "m", manifestSha256: "a", providerId: "prov_1", pinnedAtMs: 5 };
    expect(faultOf(() => store.modelPins.pin(pin)).reason).toBe("sqlite_constraint_foreignkey");
    store.providers.save(provider);
    expect(store.modelPins.pin(pin)).toEqual(pin);
    expect(store.modelPins.pin({ ...pin, manifestSha256: "b", pinnedAtMs: 9 })).toEqual(pin);
    store.providers.save({ ...provider, version: "0.2.0", seenAtMs: 9 });
    expect(store.providers.find("prov_1")).toMatchObject({ version: "0.2.0", seenAtMs: 9 });
    expect(store.modelPins.find("x")).toBeNull();
  });

  test("a damaged file is a fault that says what to do", async () => {
    await using dir = await tempDir();
    const path = `${dir.path}/coordinator.db`;
    writeFileSync(path, "this is no database, whatever its name says ".repeat(200));
    const fault = faultOf(() => openStore(deps, path));
    expect(fault.code).toBe("store_failed");
    expect(fault.message).toContain("damaged");
    expect(fault.hint).toContain("backup");
  });

  test("a database of a newer program is refused", async () => {
    await using dir = await tempDir();
    const path = `${dir.path}/coordinator.db`;
    openStore(deps, path).close();
    using raw = new Database(path);
    raw.run("INSERT INTO migrations (version, applied_at_ms) VALUES (99, 0)");
    const fault = faultOf(() => openStore(deps, path));
    expect(fault).toMatchObject({ code: "store_failed", reason: "schema_newer" });
  });

  test("a folder that cannot be written is a fault", () => {
    expect(faultOf(() => openStore(deps, "/proc/nowhere/coordinator.db")).code).toBe("store_failed");
  });

  test("a closed store fails with a fault, and closing twice is harmless", async () => {
    await using dir = await tempDir();
    const store = openStore(deps, `${dir.path}/coordinator.db`);
    store.close();
    store.close();
    expect(faultOf(() => store.keys.list()).code).toBe("store_failed");
    expect(faultOf(() => store.probe()).code).toBe("store_failed");
  });

  test("eight processes that start at once all find one good schema, and none loses a key", async () => {
    await using dir = await tempDir();
    const path = `${dir.path}/coordinator.db`;
    const script = `
      import { openStore } from ${JSON.stringify(`${import.meta.dir}/../../src/coordinator/store/open-store.ts`)};
      const [path, name] = process.argv.slice(1);
      using store = openStore({ clock: { nowMs: () => 1 } }, path);
      for (let index = 0; index < 10; index += 1)
        store.keys.insert({ id: name + index, name, owner: "local", label: "l", createdAtMs: 1, revokedAtMs: null }, name + index);
    `;
    const children = Array.from({ length: 8 }, (_, index) =>
      Bun.spawn([process.execPath, "-e", script, path, `p${index}-`], { stderr: "pipe" }),
    );
    for (const child of children) {
      const text = await new Response(child.stderr).text();
      expect({ code: await child.exited, text }).toEqual({ code: 0, text: "" });
    }
    using store = openStore(deps, path);
    expect(store.keys.list().length).toBe(80);
  });
});
