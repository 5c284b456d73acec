/** How the program starts itself again as a throw-away or supervised child, from source and from the compiled executable. */
import { join } from "node:path";

export interface SelfCommand {
  /** The argument vector of a child that runs `darkbloom <verb> <args…>`. */
  (verb: string, args: readonly string[]): string[];
}

/** Where Bun mounts the files inside a compiled executable. */
const EMBEDDED_ROOT = "/$bunfs/";

export const isCompiled = (): boolean => Bun.main.startsWith(EMBEDDED_ROOT);

/**
 * `entry` names the script to run from source; a compiled executable is always its own entry. A `.env` file in the
 * user's folder must not reach the child, and nothing may be installed on the way.
 */
export const selfCommand = (entry = join(import.meta.dir, "../../bin/darkbloom.ts")): SelfCommand => {
  const program = isCompiled() ? [process.execPath] : [process.execPath, "--no-env-file", "--no-install", entry];
  return (verb, args) => [...program, verb, ...args];
};
