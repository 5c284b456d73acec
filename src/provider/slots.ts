/** The models in memory: which engine runs which id, in what state, and how many requests hold it. */
import type { Clock } from "../core/clock.ts";
import { Fault, toFault } from "../core/fault.ts";
import { errorFields, type Log } from "../core/log.ts";
import type { Engine } from "../engine/engine.ts";

/** Vocabulary of protocol-trust §2.3. */
export type SlotState = "running" | "idle" | "idle_shutdown" | "reloading" | "crashed";

/** A request's hold on a model: while it is held the model is not unloaded. */
export interface SlotLease extends Disposable {
  readonly engine: Engine;
}

export interface SlotView {
  readonly modelId: string;
  readonly state: SlotState;
  readonly inUse: number;
  /** Null until loaded. */
  readonly engine: Engine | null;
  readonly loadMs: number | null;
}

export interface EngineEnd {
  readonly modelId: string;
  readonly fault: Fault;
  /** The engine's thread hangs in a native call: only the end of the process frees it. */
  readonly wedged: boolean;
}

export interface SlotsDeps {
  readonly clock: Pick<Clock, "monotonicMs">;
  readonly log: Log;
  /** A state, a count or the set of models changed. */
  readonly onChange: () => void;
  /** An engine ended without being asked to. */
  readonly onEngineEnded: (end: EngineEnd) => void;
}

interface Slot {
  readonly modelId: string;
  phase: "reloading" | "loaded" | "idle_shutdown" | "crashed";
  /** A load is under way: a second one at the same time is a mistake. */
  loading: boolean;
  engine: Engine | null;
  inUse: number;
  loadMs: number | null;
}

/** Models of one process; more than this is a mistake. */
const SLOTS_MAX = 64;

export class Slots implements AsyncDisposable {
  readonly #deps: SlotsDeps;
  readonly #slots = new Map<string, Slot>();
  #closing = false;

  constructor(deps: SlotsDeps) {
    this.#deps = deps;
  }

  /** Makes the id known before its load starts: a request for it is then told to wait, not that there is no such model. */
  announce(modelId: string): void {
    this.#slotFor(modelId);
    this.#deps.onChange();
  }

  /** Loads a model, again when it was unloaded or crashed. Rejects with the engine's own fault. */
  async load(modelId: string, openEngine: () => Promise<Engine>): Promise<Engine> {
    const slot = this.#slotFor(modelId);
    if (slot.loading || slot.phase === "loaded")
      throw new Fault("usage", `the model ${modelId} is loaded already`, { hint: "give each model its own --id" });
    const startMs = this.#deps.clock.monotonicMs();
    slot.loading = true;
    slot.phase = "reloading";
    this.#deps.onChange();
    try {
      const engine = await openEngine();
      if (this.#closing) {
        await engine[Symbol.asyncDispose]();
        throw new Fault("cancelled", "the provider stopped while a model was loading");
      }
      slot.engine = engine;
      slot.phase = "loaded";
      slot.loadMs = this.#deps.clock.monotonicMs() - startMs;
      this.#watch(slot, engine);
      this.#deps.log.info("model_loaded", { model: modelId, tookMs: Math.round(slot.loadMs) });
      this.#deps.onChange();
      return engine;
    } catch (error) {
      slot.phase = "crashed";
      this.#deps.onChange();
      throw error;
    } finally {
      slot.loading = false;
    }
  }

  /** Holds a loaded model for a request. Faults: `model_unavailable` (404 for an id that is not here), `model_crashed`. */
  acquire(modelId: string): SlotLease {
    const slot = this.#slots.get(modelId);
    if (slot === undefined)
      throw new Fault("model_unavailable", "the model is not loaded", { reason: "model_load", status: 404 });
    if (slot.phase === "crashed") throw new Fault("model_crashed", "the model crashed", { reason: "model_load" });
    const { engine } = slot;
    if (engine === null || slot.phase !== "loaded")
      throw new Fault("model_unavailable", "the model is not loaded", { reason: "model_load" });
    slot.inUse += 1;
    if (slot.inUse === 1) this.#deps.onChange();
    let held = true;
    return {
      engine,
      [Symbol.dispose]: () => {
        if (!held) return;
        held = false;
        slot.inUse -= 1;
        if (slot.inUse === 0) this.#deps.onChange();
      },
    };
  }

  views(): SlotView[] {
    return [...this.#slots.values()].map(({ modelId, inUse, engine, loadMs, phase }) => ({
      modelId,
      state: phase === "loaded" ? (inUse > 0 ? "running" : "idle") : phase,
      inUse,
      engine,
      loadMs,
    }));
  }

  /** Whether a request for the model would be taken now. */
  isServing(modelId: string): boolean {
    return this.#slots.get(modelId)?.phase === "loaded";
  }

  /** Frees every model; running requests end with `cancelled`. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing = true;
    const engines = [...this.#slots.values()].flatMap((slot) => (slot.engine === null ? [] : [slot.engine]));
    const results = await Promise.allSettled(engines.map((engine) => engine[Symbol.asyncDispose]()));
    for (const result of results)
      if (result.status === "rejected") this.#deps.log.warn("model_close_failed", errorFields(result.reason));
  }

  #slotFor(modelId: string): Slot {
    const known = this.#slots.get(modelId);
    if (known !== undefined) return known;
    if (this.#slots.size >= SLOTS_MAX) throw new Fault("usage", `more than ${SLOTS_MAX} models in one provider`);
    const slot: Slot = { modelId, phase: "reloading", loading: false, engine: null, inUse: 0, loadMs: null };
    this.#slots.set(modelId, slot);
    return slot;
  }

  #watch(slot: Slot, engine: Engine): void {
    const onEnded = (error: Error | null): void => {
      if (slot.engine !== engine) return;
      slot.engine = null;
      slot.phase = error === null ? "idle_shutdown" : "crashed";
      this.#deps.onChange();
      if (error === null || this.#closing) return;
      const fault = toFault(error);
      this.#deps.log.error("engine_ended", { model: slot.modelId, ...errorFields(error) });
      this.#deps.onEngineEnded({ modelId: slot.modelId, fault, wedged: fault.reason === "wedged" });
    };
    engine.ended.then(onEnded, onEnded);
  }
}
