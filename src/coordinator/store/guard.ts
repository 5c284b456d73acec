/** Turns what SQLite throws into a Fault that says what to do, without quoting any stored value. */
import { Fault } from "../../core/fault.ts";

const codeOf = (thrown: unknown): string => {
  const code = typeof thrown === "object" && thrown !== null && "code" in thrown ? thrown.code : null;
  return typeof code === "string" ? code : "unknown";
};

const toStoreFault = (what: string, thrown: unknown): Fault => {
  const code = codeOf(thrown);
  const options = { reason: code.toLowerCase(), cause: thrown };
  if (code.startsWith("SQLITE_BUSY") || code.startsWith("SQLITE_LOCKED"))
    return new Fault("store_failed", `the database is locked by another process (${what})`, {
      ...options,
      hint: "find the process that holds coordinator.db, or try again",
    });
  if (code.startsWith("SQLITE_CORRUPT") || code.startsWith("SQLITE_NOTADB"))
    return new Fault("store_failed", `the database file is damaged (${what})`, {
      ...options,
      hint: "restore coordinator.db from a backup, or move it away to start empty",
    });
  if (code.startsWith("SQLITE_FULL"))
    return new Fault("store_failed", `the disk is full (${what})`, { ...options, hint: "free disk space" });
  return new Fault("store_failed", `the database could not be used (${what}: ${code})`, options);
};

/** Runs one database action; a Fault passes through, anything else becomes `store_failed`. */
export const guard = <T>(what: string, action: () => T): T => {
  try {
    return action();
  } catch (thrown) {
    if (thrown instanceof Fault) throw thrown;
    throw toStoreFault(what, thrown);
  }
};
