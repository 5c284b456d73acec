/** Opens the coordinator's SQLite database and brings its schema up to date. */
import { Database } from "bun:sqlite";
import { closeSync, mkdirSync, openSync } from "node:fs";
import { dirname } from "node:path";
import { Fault } from "../../core/fault.ts";
import { guard } from "./guard.ts";
import { createJoinTokenStore } from "./join-token-store.ts";
import { createKeyStore } from "./key-store.ts";
import { MIGRATIONS } from "./migrations.ts";
import { createModelPinStore } from "./model-pin-store.ts";
import { createProviderStore } from "./provider-store.ts";
import type { Store } from "./store.ts";

/** How long a statement waits for another process's write before it fails. */
const BUSY_MS = 5_000;

const configure = (database: Database): void => {
  database.run(`PRAGMA busy_timeout = ${BUSY_MS}`);
  database.run("PRAGMA journal_mode = WAL");
  database.run("PRAGMA synchronous = FULL");
  database.run("PRAGMA foreign_keys = ON");
};

const versionOf = (database: Database): number =>
  database.query<{ version: number | null }, []>("SELECT max(version) AS version FROM migrations").get()?.version ?? 0;

const migrate = (database: Database, nowMs: number): void => {
  // Immediate: of two processes that start at once, the second waits here and then finds nothing left to do.
  const apply = database.transaction(() => {
    database.run(
      "CREATE TABLE IF NOT EXISTS migrations (version INTEGER PRIMARY KEY, applied_at_ms INTEGER NOT NULL) STRICT",
    );
    const found = versionOf(database);
    if (found > MIGRATIONS.length)
      throw new Fault(
        "store_failed",
        `the database has schema version ${found}, newer than this program's ${MIGRATIONS.length}`,
        {
          reason: "schema_newer",
          hint: "run the newer darkbloom that wrote it",
        },
      );
    const record = database.query("INSERT INTO migrations (version, applied_at_ms) VALUES (?, ?)");
    for (const [index, sql] of MIGRATIONS.entries()) {
      if (index < found) continue;
      database.run(sql);
      record.run(index + 1, nowMs);
    }
  });
  apply.immediate();
};

/** Only the owner may read the file: it names who uses the network. */
const createFile = (path: string): void => {
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
  closeSync(openSync(path, "a", 0o600));
};

/** Opens or creates the database at `path`; throws `store_failed` when it is damaged, locked or of a newer schema. */
export const openStore = (deps: { readonly clock: { nowMs(): number } }, path: string): Store => {
  const database = guard("open", () => {
    createFile(path);
    return new Database(path, { create: true, readwrite: true, strict: true });
  });
  try {
    guard("open", () => {
      configure(database);
      migrate(database, deps.clock.nowMs());
    });
  } catch (thrown) {
    database.close();
    throw thrown;
  }
  let open = true;
  const close = (): void => {
    if (!open) return;
    open = false;
    database.close();
  };
  return {
    keys: createKeyStore(database),
    joinTokens: createJoinTokenStore(database),
    providers: createProviderStore(database),
    modelPins: createModelPinStore(database),
    probe: () => guard("probe", () => void versionOf(database)),
    close,
    [Symbol.dispose]: close,
  };
};
