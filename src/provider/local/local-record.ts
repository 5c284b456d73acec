/** The local endpoint's files: its key, made once, and `local.json`, by which other programs find it while it runs. */
import { chmodSync, statSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { Fault } from "../../core/fault.ts";
import type { Random } from "../../core/ids.ts";
import { ensurePrivateDir, ioFault, readPrivateFile, removeFile, writePrivateFile } from "../state/private-file.ts";

export const localKeyPath = (dataDir: string): string => join(dataDir, "local.key");
export const localRecordPath = (dataDir: string): string => join(dataDir, "local.json");

/** `dk-local-` + base64url of 32 random bytes (provider-cli §10.5). */
const LOCAL_KEY = /^dk-local-[A-Za-z0-9_-]{43}$/;

/** The folder's key; made at the first call. Faults: `io_failed`, `config_invalid` for a file that holds no key. */
export const openLocalKey = (random: Pick<Random, "bytes">, dataDir: string): string => {
  ensurePrivateDir(dataDir);
  const path = localKeyPath(dataDir);
  const found = readPrivateFile(path)?.trim();
  if (found === undefined) {
    const key = `dk-local-${Buffer.from(random.bytes(32)).toString("base64url")}`;
    writePrivateFile(path, `${key}\n`, { durable: true });
    return key;
  }
  if (!LOCAL_KEY.test(found))
    throw new Fault("config_invalid", `${path} holds no local key`, { hint: `remove it to get a new key: rm ${path}` });
  narrow(path);
  return found;
};

/** A key that a backup or a copy made readable for others is closed again. */
const narrow = (path: string): void => {
  try {
    if ((statSync(path).mode & 0o077) !== 0) chmodSync(path, 0o600);
  } catch (error) {
    throw ioFault("protect", path, error);
  }
};

const recordSchema = z.object({
  base_url: z.string(),
  api_key: z.string(),
  host: z.string(),
  port: z.int(),
  pid: z.int(),
  version: z.string(),
  updated_at: z.iso.datetime(),
});
export type LocalRecord = z.infer<typeof recordSchema>;

export const writeLocalRecord = (dataDir: string, record: LocalRecord): void =>
  writePrivateFile(localRecordPath(dataDir), `${JSON.stringify(record, null, 2)}\n`);

/** Null when there is none or it is not ours. */
export const readLocalRecord = (dataDir: string): LocalRecord | null => {
  const text = readPrivateFile(localRecordPath(dataDir));
  if (text === null) return null;
  try {
    return recordSchema.parse(JSON.parse(text));
  } catch {
    // A record that cannot be read is as good as none: whoever wrote it is gone or another program.
    return null;
  }
};

/** Removes this process's record; a successor's stays. */
export const removeLocalRecord = (dataDir: string, pid: number): void => {
  if (readLocalRecord(dataDir)?.pid === pid) removeFile(localRecordPath(dataDir));
};
