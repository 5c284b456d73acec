/** The database's history: each entry is applied once, in order, and never edited after a release. */

export const MIGRATIONS: readonly string[] = [
  `CREATE TABLE api_keys (
     id TEXT PRIMARY KEY,
     name TEXT NOT NULL,
     owner TEXT NOT NULL,
     label TEXT NOT NULL,
     secret_sha256 TEXT NOT NULL UNIQUE,
     created_at_ms INTEGER NOT NULL,
     revoked_at_ms INTEGER
   ) STRICT;
   CREATE TABLE join_tokens (
     id TEXT PRIMARY KEY,
     name TEXT NOT NULL,
     label TEXT NOT NULL,
     secret_sha256 TEXT NOT NULL UNIQUE,
     models TEXT,
     created_at_ms INTEGER NOT NULL,
     expires_at_ms INTEGER,
     revoked_at_ms INTEGER
   ) STRICT;
   CREATE TABLE providers (
     id TEXT PRIMARY KEY,
     identity_key TEXT NOT NULL UNIQUE,
     version TEXT NOT NULL,
     chip TEXT NOT NULL,
     machine_model TEXT NOT NULL,
     trust_level TEXT NOT NULL,
     first_seen_at_ms INTEGER NOT NULL,
     seen_at_ms INTEGER NOT NULL
   ) STRICT;
   CREATE TABLE model_pins (
     model_id TEXT PRIMARY KEY,
     manifest_sha256 TEXT NOT NULL,
     provider_id TEXT NOT NULL REFERENCES providers (id),
     pinned_at_ms INTEGER NOT NULL
   ) STRICT;`,
];
