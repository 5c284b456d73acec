/** What both kinds of provider, with and without a coordinator, do alike: lock, state file, loading, and the engine's end. */
import type { Clock } from "../core/clock.ts";
import { Fault, toFault } from "../core/fault.ts";
import type { Random } from "../core/ids.ts";
import type { Log } from "../core/log.ts";
import type { Engine } from "../engine/engine.ts";
import { acquireLock, releaseOwnLock, systemProcesses, type ProcessProbe } from "./state/instance-lock.ts";
import { removeLocalRecord } from "./local/local-record.ts";
import { Slots, type EngineEnd } from "./slots.ts";
import {
  markStopped,
  openStateWriter,
  type ProviderPhase,
  type StateStart,
  type StateWriter,
} from "./state/state-file.ts";

/** The phases of the contract for scripts; others are only in the state file. */
export type StartPhase = "hashing" | "loading" | "connecting";

/** Exit code with which a child asks its supervisor for a restart: its engine crashed or hangs. */
export const EXIT_ENGINE_LOST = 86;

export interface HashedModel {
  readonly manifestSha256: string;
}

export interface ServedModel {
  readonly id: string;
  /** Phase `hashing`. */
  readonly hash: () => Promise<HashedModel>;
  /** Phase `loading`. The engine's `model.id` must be this id. */
  readonly open: () => Promise<Engine>;
}

export interface ProviderServing {
  readonly models: readonly string[];
  readonly provider_id: string;
  readonly trust_level: string;
}

export interface ProviderEvents {
  readonly onPhase: (phase: StartPhase) => void;
  /** The next request will be answered. Again after every reconnection. */
  readonly onServing: (serving: ProviderServing) => void;
  /** Something the owner should know; the provider goes on by itself. */
  readonly onFault: (fault: Fault) => void;
}

/** The provider can do no more: the process should end with this code. */
export interface ProviderEnd {
  readonly exitCode: number;
  readonly fault: Fault;
}

export interface LifecycleDeps {
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
  readonly processes?: ProcessProbe;
}

export interface LifecycleOptions {
  readonly dataDir: string;
  readonly start: Omit<StateStart, "pid" | "models">;
  readonly events: ProviderEvents;
  /** Load, counts or models changed. */
  readonly onChange: () => void;
}

/** A live process refreshes its state file this often, so that its age tells whether it lives. */
const REFRESH_MS = 5_000;
/** A crash of the engine is reported and its jobs' faults are sent before the process ends. */
const LAST_WORDS_MS = 250;

export class Lifecycle implements AsyncDisposable {
  readonly slots: Slots;
  readonly state: StateWriter;
  readonly ended: Promise<ProviderEnd>;
  readonly #deps: LifecycleDeps;
  readonly #options: LifecycleOptions;
  readonly #lock: Disposable;
  readonly #refresh: { cancel(): void };
  /** A timer that holds the process: the clock's own do not, and while a link waits nothing else may. */
  readonly #keepAlive: ReturnType<typeof setInterval>;
  #resolveEnded: (end: ProviderEnd) => void = () => undefined;
  #closed = false;

  /** Faults: `already_running`, `io_failed`. */
  constructor(deps: LifecycleDeps, options: LifecycleOptions) {
    this.#deps = deps;
    this.#options = options;
    this.#lock = acquireLock({ random: deps.random, processes: deps.processes ?? systemProcesses() }, options.dataDir);
    this.state = openStateWriter(deps, options.dataDir, { ...options.start, pid: process.pid, models: [] });
    this.slots = new Slots({
      clock: deps.clock,
      log: deps.log,
      onChange: options.onChange,
      onEngineEnded: (end) => this.#onEngineEnded(end),
    });
    this.ended = new Promise((resolve) => {
      this.#resolveEnded = resolve;
    });
    this.#refresh = deps.clock.every(REFRESH_MS, () => this.state.update({}));
    this.#keepAlive = setInterval(() => undefined, 2 ** 30);
  }

  enter(phase: ProviderPhase, change: Parameters<StateWriter["update"]>[0] = {}): void {
    this.state.update({ ...change, phase });
    if (phase === "hashing" || phase === "loading" || phase === "connecting") this.#options.events.onPhase(phase);
  }

  /** Hashes, then loads; the state file names the model from here on, so that a crash can be blamed on it. */
  async load(model: ServedModel): Promise<{ readonly engine: Engine; readonly hashed: HashedModel }> {
    this.slots.announce(model.id);
    this.enter("hashing");
    const hashed = await model.hash();
    this.enter("loading", { models: [...this.state.current.models, model.id] });
    return { hashed, engine: await this.slots.load(model.id, model.open) };
  }

  report(fault: Fault): void {
    this.state.setError(fault);
    this.#options.events.onFault(fault);
  }

  /** For a start that did not succeed: leaves a truthful state file and gives everything back, then rethrows. */
  async abandon(thrown: unknown): Promise<never> {
    const fault = toFault(thrown);
    this.state.setError(fault);
    await this.#close("failed");
    throw thrown;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#close("stopped");
  }

  async #close(phase: "stopped" | "failed"): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#refresh.cancel();
    await this.slots[Symbol.asyncDispose]();
    this.state.update({ phase, models: [], requests_running: 0, local_url: null });
    this.#lock[Symbol.dispose]();
    clearInterval(this.#keepAlive);
  }

  #onEngineEnded(end: EngineEnd): void {
    this.report(end.fault);
    const othersServe = this.slots.views().some((view) => this.slots.isServing(view.modelId));
    // A hung native call is freed only by the end of the process; a provider without a model is of no use either.
    if (othersServe && !end.wedged) return;
    const fault = new Fault("engine_failed", `the engine of ${end.modelId} ended: ${end.fault.message}`, {
      cause: end.fault,
    });
    this.#deps.clock.after(LAST_WORDS_MS, () => this.#resolveEnded({ exitCode: EXIT_ENGINE_LOST, fault }));
  }
}

/**
 * Leaves the folder of a start that is cut off as a stop would: a native load cannot be interrupted, so it ends with the
 * process, which must end right after this. Faults: `io_failed`.
 */
export const leaveFolder = (clock: Pick<Clock, "nowMs">, dataDir: string): void => {
  removeLocalRecord(dataDir, process.pid);
  markStopped(clock, dataDir);
  releaseOwnLock(dataDir);
};
