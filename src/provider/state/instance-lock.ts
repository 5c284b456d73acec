/** `provider.pid`: one provider per data folder, known by process id and process start so that a reused id does not lock anyone out. */
import { linkSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Fault } from "../../core/fault.ts";
import { toHex, type Random } from "../../core/ids.ts";
import { ensurePrivateDir, ioFault, readPrivateFile } from "./private-file.ts";

export interface ProcessProbe {
  /**
   * Something that differs between two processes that had the same id at different times; null when no such process runs.
   * `"unknown"` when it runs but its start cannot be learned.
   */
  startOf(pid: number): string | null;
}

export interface LockDeps {
  readonly random: Pick<Random, "bytes">;
  readonly processes: ProcessProbe;
}

export const lockPath = (dataDir: string): string => join(dataDir, "provider.pid");

interface Holder {
  readonly pid: number;
  readonly start: string;
}

const parseHolder = (text: string): Holder | null => {
  const [pidText = "", start = "unknown"] = text.split("\n");
  const pid = Number(pidText);
  return Number.isSafeInteger(pid) && pid > 0 ? { pid, start } : null;
};

const isAlive = (processes: ProcessProbe, holder: Holder): boolean => {
  const start = processes.startOf(holder.pid);
  if (start === null) return false;
  return start === holder.start || start === "unknown" || holder.start === "unknown";
};

/** Two processes may both find a dead holder; more rounds than this means that they keep meeting. */
const ROUNDS_MAX = 5;

/**
 * Takes the folder for this process until disposed. A file left by a dead process is taken over.
 * Faults: `already_running` (names the process), `io_failed`.
 */
export const acquireLock = (deps: LockDeps, dataDir: string): Disposable => {
  ensurePrivateDir(dataDir);
  const path = lockPath(dataDir);
  const own = `${process.pid}\n${deps.processes.startOf(process.pid) ?? "unknown"}\n`;
  const draft = `${path}.${toHex(deps.random.bytes(6))}`;
  try {
    writeFileSync(draft, own, { mode: 0o600, flag: "wx" });
    for (let round = 0; round < ROUNDS_MAX; round += 1) {
      if (tryLink(draft, path)) return heldLock(path, own);
      const found = readPrivateFile(path);
      if (found === null) continue;
      const holder = parseHolder(found);
      if (holder !== null && isAlive(deps.processes, holder)) throw alreadyRunning(dataDir, holder.pid);
      removeStale(path, `${draft}.stale`, found);
    }
  } catch (error) {
    throw error instanceof Fault ? error : ioFault("lock", path, error);
  } finally {
    rmSync(draft, { force: true });
  }
  throw new Fault("already_running", `another provider is starting in ${dataDir}`, { hint: "try again" });
};

const alreadyRunning = (dataDir: string, pid: number): Fault =>
  new Fault("already_running", `a provider already runs in ${dataDir} (process ${pid})`, {
    hint: `stop it with: kill ${pid}, or give this one its own folder with --data-dir`,
  });

/** A link appears whole or not at all, unlike a file that is created and then written. */
const tryLink = (draft: string, path: string): boolean => {
  try {
    linkSync(draft, path);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EEXIST") return false;
    throw error;
  }
};

/** Moves the file away first: if someone else replaced it since it was judged, it is theirs and goes back. */
const removeStale = (path: string, aside: string, judged: string): void => {
  try {
    renameSync(path, aside);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return;
    throw error;
  }
  if (readPrivateFile(aside) !== judged) tryLink(aside, path);
  rmSync(aside, { force: true });
};

const heldLock = (path: string, own: string): Disposable => ({
  [Symbol.dispose]: () => {
    if (readPrivateFile(path) === own) rmSync(path, { force: true });
  },
});

/** Gives the folder back from outside, where the holder itself cannot be reached; another process's lock stays. */
export const releaseOwnLock = (dataDir: string): void => {
  if (readLockPid(dataDir) === process.pid) rmSync(lockPath(dataDir), { force: true });
};

/** What the lock file names, whether or not that process still runs. */
export const readLockPid = (dataDir: string): number | null => {
  const text = readPrivateFile(lockPath(dataDir));
  return text === null ? null : (parseHolder(text)?.pid ?? null);
};

const signalReaches = (pid: number): boolean => {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    // EPERM: it runs and belongs to someone else.
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
};

/** Field 22 of `/proc/<pid>/stat` (clock ticks since boot), counted after the last `)` because a process may name itself anything. */
const linuxStart = (pid: number): string => {
  const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
  const boot = readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
  const ticks = stat.slice(stat.lastIndexOf(")") + 2).split(" ")[19];
  return `${boot}:${ticks ?? ""}`;
};

const psStart = (pid: number): string => {
  const ps = Bun.spawnSync(["ps", "-o", "lstart=", "-p", String(pid)], { stdin: "ignore", stderr: "ignore" });
  const text = ps.stdout.toString().trim();
  return ps.success && text !== "" ? text : "unknown";
};

export const systemProcesses = (platform: NodeJS.Platform = process.platform): ProcessProbe => ({
  startOf(pid) {
    if (!signalReaches(pid)) return null;
    try {
      return platform === "linux" ? linuxStart(pid) : psStart(pid);
    } catch {
      // It ended between the two looks, or its start is hidden: the caller then treats it as alive, the safe side.
      return signalReaches(pid) ? "unknown" : null;
    }
  },
});
