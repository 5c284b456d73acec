/** Provider machines in SQLite, by stable id. */
import type { Database } from "bun:sqlite";
import { guard } from "./guard.ts";
import type { ProviderStore, StoredProvider } from "./store.ts";

interface ProviderRow {
  id: string;
  identity_key: string;
  version: string;
  chip: string;
  machine_model: string;
  trust_level: string;
  seen_at_ms: number;
}

const toProvider = (row: ProviderRow): StoredProvider => ({
  id: row.id,
  identityKey: row.identity_key,
  version: row.version,
  chip: row.chip,
  machineModel: row.machine_model,
  trustLevel: row.trust_level,
  seenAtMs: row.seen_at_ms,
});

export const createProviderStore = (database: Database): ProviderStore => {
  const save = database.query(
    `INSERT INTO providers (id, identity_key, version, chip, machine_model, trust_level, first_seen_at_ms, seen_at_ms)
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7)
     ON CONFLICT (id) DO UPDATE SET version = excluded.version, chip = excluded.chip,
       machine_model = excluded.machine_model, trust_level = excluded.trust_level, seen_at_ms = excluded.seen_at_ms`,
  );
  const find = database.query<ProviderRow, [string]>(
    "SELECT id, identity_key, version, chip, machine_model, trust_level, seen_at_ms FROM providers WHERE id = ?",
  );
  return {
    save: (provider) =>
      guard("provider save", () => {
        save.run(
          provider.id,
          provider.identityKey,
          provider.version,
          provider.chip,
          provider.machineModel,
          provider.trustLevel,
          provider.seenAtMs,
        );
      }),
    find: (id) =>
      guard("provider lookup", () => {
        const row = find.get(id);
        return row === null ? null : toProvider(row);
      }),
  };
};
