/** API keys in SQLite. */
import type { Database } from "bun:sqlite";
import { guard } from "./guard.ts";
import type { KeyStore, StoredKey } from "./store.ts";

interface KeyRow {
  id: string;
  name: string;
  owner: string;
  label: string;
  created_at_ms: number;
  revoked_at_ms: number | null;
}

const COLUMNS = "id, name, owner, label, created_at_ms, revoked_at_ms";

const toKey = (row: KeyRow): StoredKey => ({
  id: row.id,
  name: row.name,
  owner: row.owner,
  label: row.label,
  createdAtMs: row.created_at_ms,
  revokedAtMs: row.revoked_at_ms,
});

export const createKeyStore = (database: Database): KeyStore => {
  const insert = database.query(
    "INSERT INTO api_keys (id, name, owner, label, secret_sha256, created_at_ms) VALUES (?, ?, ?, ?, ?, ?)",
  );
  const find = database.query<KeyRow, [string]>(`SELECT ${COLUMNS} FROM api_keys WHERE secret_sha256 = ?`);
  const list = database.query<KeyRow, []>(`SELECT ${COLUMNS} FROM api_keys ORDER BY created_at_ms DESC, rowid DESC`);
  const revoke = database.query("UPDATE api_keys SET revoked_at_ms = coalesce(revoked_at_ms, ?) WHERE id = ?");
  return {
    insert: (key, secretSha256) =>
      guard("key insert", () => {
        insert.run(key.id, key.name, key.owner, key.label, secretSha256, key.createdAtMs);
      }),
    findBySecret: (secretSha256) =>
      guard("key lookup", () => {
        const row = find.get(secretSha256);
        return row === null ? null : toKey(row);
      }),
    list: () => guard("key list", () => list.all().map(toKey)),
    revoke: (id, atMs) => guard("key revocation", () => revoke.run(atMs, id).changes > 0),
  };
};
