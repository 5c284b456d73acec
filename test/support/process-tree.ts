/** What of a program's process family still runs, read from the system, so that orphans are seen. */
import { readdirSync, readFileSync } from "node:fs";

/** Processes whose command line names this text (a data folder of the test's own), zombies left out. */
export const processesNaming = (text: string): readonly number[] => {
  const listed = Bun.spawnSync(["ps", "-eo", "pid=,stat=,args="]).stdout.toString().split("\n");
  const found = listed.map((line) => /^\s*(\d+)\s+(\S+)\s+(.*)$/.exec(line)).filter((match) => match !== null);
  return found
    .filter(([, , stat = "", args = ""]) => args.includes(text) && !stat.startsWith("Z"))
    .map(([, pid]) => Number(pid));
};

/** The process a data folder's `provider.pid` names. */
export const providerPidOf = (dataDir: string): number | null => {
  if (!readdirSync(dataDir).includes("provider.pid")) return null;
  return Number(readFileSync(`${dataDir}/provider.pid`, "utf8").split("\n")[0]);
};
