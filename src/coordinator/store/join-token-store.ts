/** Join tokens in SQLite. */
import type { Database } from "bun:sqlite";
import { z } from "zod";
import { guard } from "./guard.ts";
import type { JoinTokenStore, StoredJoinToken } from "./store.ts";

interface JoinTokenRow {
  id: string;
  name: string;
  label: string;
  models: string | null;
  created_at_ms: number;
  expires_at_ms: number | null;
  revoked_at_ms: number | null;
}

const COLUMNS = "id, name, label, models, created_at_ms, expires_at_ms, revoked_at_ms";
const modelsSchema = z.array(z.string());

const toToken = (row: JoinTokenRow): StoredJoinToken => ({
  id: row.id,
  name: row.name,
  label: row.label,
  models: row.models === null ? null : modelsSchema.parse(JSON.parse(row.models)),
  createdAtMs: row.created_at_ms,
  expiresAtMs: row.expires_at_ms,
  revokedAtMs: row.revoked_at_ms,
});

export const createJoinTokenStore = (database: Database): JoinTokenStore => {
  const insert = database.query(
    "INSERT INTO join_tokens (id, name, label, secret_sha256, models, created_at_ms, expires_at_ms) VALUES (?, ?, ?, ?, ?, ?, ?)",
  );
  const find = database.query<JoinTokenRow, [string]>(`SELECT ${COLUMNS} FROM join_tokens WHERE secret_sha256 = ?`);
  const list = database.query<JoinTokenRow, []>(
    `SELECT ${COLUMNS} FROM join_tokens ORDER BY created_at_ms DESC, rowid DESC`,
  );
  const revoke = database.query("UPDATE join_tokens SET revoked_at_ms = coalesce(revoked_at_ms, ?) WHERE id = ?");
  return {
    insert: (token, secretSha256) =>
      guard("join token insert", () => {
        const models = token.models === null ? null : JSON.stringify(token.models);
        insert.run(token.id, token.name, token.label, secretSha256, models, token.createdAtMs, token.expiresAtMs);
      }),
    findBySecret: (secretSha256) =>
      guard("join token lookup", () => {
        const row = find.get(secretSha256);
        return row === null ? null : toToken(row);
      }),
    list: () => guard("join token list", () => list.all().map(toToken)),
    revoke: (id, atMs) => guard("join token revocation", () => revoke.run(atMs, id).changes > 0),
  };
};
