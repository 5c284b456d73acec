/** The real world behind CommandDeps: streams, time, randomness, environment and signals of this process. */
import { writeSync } from "node:fs";
import manifest from "../package.json" with { type: "json" };
import { systemClock } from "../src/core/clock.ts";
import { processEnvironment } from "../src/core/config-environment.ts";
import { Fault } from "../src/core/fault.ts";
import { createIds, systemRandom } from "../src/core/ids.ts";
import type { CommandDeps, StopSignals } from "./_deps.ts";

const EXIT_SECOND_SIGNAL = 130;

/** Writes whole text even when the pipe is full; a closed pipe (`| head`) is the reader's wish and ends silently. */
const writer =
  (descriptor: number) =>
  (text: string): void => {
    const bytes = Buffer.from(text);
    let offset = 0;
    while (offset < bytes.length) {
      try {
        offset += writeSync(descriptor, bytes, offset);
      } catch (thrown) {
        const { code } = thrown as NodeJS.ErrnoException;
        if (code === "EAGAIN") Bun.sleepSync(1);
        else if (code === "EPIPE") return;
        else throw thrown;
      }
    }
  };

/** Handlers are installed at first use. A signal that came before somebody took over is handed to them then. */
const processSignals = (): StopSignals => {
  const controller = new AbortController();
  const { promise, resolve } = Promise.withResolvers<"SIGINT" | "SIGTERM">();
  let installed = false;
  let taken: ((signal: "SIGINT" | "SIGTERM") => void) | null = null;
  let first: "SIGINT" | "SIGTERM" | null = null;
  const install = (): void => {
    if (installed) return;
    installed = true;
    for (const name of ["SIGINT", "SIGTERM"] as const)
      process.on(name, () => {
        // Service managers and `timeout` send SIGTERM twice, to the process and to its group; only a person asks again.
        if (first !== null && name === "SIGTERM") return;
        const again = first !== null;
        first ??= name;
        if (taken !== null) {
          taken(name);
          return;
        }
        if (again) process.exit(EXIT_SECOND_SIGNAL);
        controller.abort(new Fault("interrupted", "interrupted"));
        resolve(name);
      });
  };
  return {
    get stopping() {
      install();
      return controller.signal;
    },
    untilStop: () => {
      install();
      return promise;
    },
    takeOver(handler) {
      install();
      taken = handler;
      if (first !== null) handler(first);
    },
  };
};

export const realDeps = (): CommandDeps => {
  const random = systemRandom();
  return {
    stdout: writer(1),
    stderr: writer(2),
    clock: systemClock(),
    random,
    ids: createIds(random),
    isTty: process.stderr.isTTY,
    environment: processEnvironment(),
    version: manifest.version,
    signals: processSignals(),
  };
};
