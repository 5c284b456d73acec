/** Decides what every step of the engine computes: all decoding rows first, then pieces of waiting prompts. Pure: no clock, no native code. */
import { assert, Fault } from "../core/fault.ts";
import { ewma } from "./ewma.ts";

export interface SchedulerOptions {
  /** Requests that hold a row at the same time. */
  readonly rows: number;
  /** Most tokens of one step. */
  readonly batchTokens: number;
  /** Requests that may wait for a row; absent = rows × 8, at least 32. */
  readonly waitingMax?: number;
}

/** A request that holds a row. Its slot is its memory sequence until it is released. */
export interface Row<Job> {
  readonly job: Job;
  readonly slot: number;
  readonly promptTokens: number;
  /** Prompt tokens computed so far; the row decodes once it has them all. */
  promptDone: number;
  /** Tokens in the row's sequence: the next token's position. */
  position: number;
}

/** A row's part of a step: `count` tokens from `start` of the prompt, or the one token it sampled last. */
export interface Share<Job> {
  readonly row: Row<Job>;
  readonly decoding: boolean;
  readonly start: number;
  readonly count: number;
  /** The step ends with a sampled token for this row. */
  readonly sample: boolean;
}

/** A step with decoding rows may take twice what decoding alone takes, but prompts are not cut finer than this. */
const MIXED_STEP_MS_MIN = 40;
/**
 * A step of prompts alone. A constant, because a prompt cut elsewhere rounds otherwise: alone, the same request must give the
 * same tokens, however fast the machine happens to be.
 */
const PROMPT_STEP_TOKENS = 512;
/** Every waiting prompt gets this many tokens in every step, target or not. */
const CHUNK_TOKENS_MIN = 8;
/** Beside running rows before anything was measured. */
const CHUNK_TOKENS_FIRST = 128;
/** How much a step counts in what is learned of steps. */
const STEP_WEIGHT = 0.2;
const WAITING_MIN = 32;
const RETRY_AFTER_MS = 1000;

export class BatchScheduler<Job> {
  readonly rowsMax: number;
  readonly waitingMax: number;
  readonly #batchTokens: number;
  /** Running rows by arrival. */
  readonly #rows: Row<Job>[] = [];
  readonly #freeSlots: number[];
  readonly #waiting: Job[] = [];
  #shares: Share<Job>[] = [];
  #decodeStepMs: number | null = null;
  #promptTokenMs: number | null = null;

  constructor(options: SchedulerOptions) {
    assert(options.rows >= 1 && options.batchTokens >= options.rows, "every row fits into a step");
    this.rowsMax = options.rows;
    this.waitingMax = options.waitingMax ?? Math.max(WAITING_MIN, options.rows * 8);
    this.#batchTokens = options.batchTokens;
    this.#freeSlots = Array.from({ length: options.rows }, (_, index) => options.rows - 1 - index);
  }

  get rows(): readonly Row<Job>[] {
    return this.#rows;
  }

  get waiting(): readonly Job[] {
    return this.#waiting;
  }

  /** Queues by arrival. Throws `queue_full`: a longer queue would only turn overload into timeouts. */
  submit(job: Job): void {
    if (this.#waiting.length >= this.waitingMax + this.#freeSlots.length)
      throw new Fault("queue_full", "too many requests wait for this model", { retryAfterMs: RETRY_AFTER_MS });
    this.#waiting.push(job);
  }

  /** The longest waiting request when a row is free; it must be held or dropped at once. */
  takeNext(): Job | null {
    return this.#freeSlots.length === 0 ? null : (this.#waiting.shift() ?? null);
  }

  hold(job: Job, promptTokens: number): Row<Job> {
    assert(promptTokens >= 1, "a prompt has a token");
    const slot = this.#freeSlots.pop();
    assert(slot !== undefined, "a row is free");
    const row: Row<Job> = { job, slot, promptTokens, promptDone: 0, position: 0 };
    this.#rows.push(row);
    return row;
  }

  /** Forgets a request, wherever it is; returns the row it held. */
  release(job: Job): Row<Job> | null {
    const waits = this.#waiting.indexOf(job);
    if (waits !== -1) this.#waiting.splice(waits, 1);
    const index = this.#rows.findIndex((row) => row.job === job);
    const row = this.#rows[index];
    if (row === undefined) return null;
    this.#rows.splice(index, 1);
    this.#freeSlots.push(row.slot);
    return row;
  }

  /** The next step; empty when no row runs. Call `commit` once it is computed. */
  plan(): readonly Share<Job>[] {
    const shares: Share<Job>[] = [];
    const prompts: Row<Job>[] = [];
    for (const row of this.#rows) {
      if (row.promptDone < row.promptTokens) prompts.push(row);
      else shares.push({ row, decoding: true, start: 0, count: 1, sample: true });
    }
    this.#planPrompts(prompts, shares);
    this.#shares = shares;
    return shares;
  }

  /** The planned step was computed in this time; rows advance and later steps are sized by what was learned. */
  commit(tookMs: number): void {
    let [decoding, prompt] = [0, 0];
    for (const { row, decoding: decodes, count } of this.#shares) {
      row.position += count;
      if (decodes) decoding += 1;
      else {
        row.promptDone += count;
        prompt += count;
      }
    }
    this.#shares = [];
    if (prompt === 0) this.#decodeStepMs = ewma(this.#decodeStepMs, tookMs, STEP_WEIGHT);
    else if (prompt >= CHUNK_TOKENS_MIN) {
      const promptMs = Math.max(tookMs * 0.05, tookMs - (decoding > 0 ? (this.#decodeStepMs ?? 0) : 0));
      this.#promptTokenMs = ewma(this.#promptTokenMs, promptMs / prompt, STEP_WEIGHT);
    }
  }

  /** Arrival order, after a small share for everyone: the first prompt is soon done and none stands still. */
  #planPrompts(prompts: readonly Row<Job>[], shares: Share<Job>[]): void {
    if (prompts.length === 0) return;
    const room = this.#batchTokens - shares.length;
    const each = Math.max(1, Math.min(CHUNK_TOKENS_MIN, Math.floor(room / prompts.length)));
    const budget = Math.min(room, Math.max(each * prompts.length, this.#promptBudget(shares.length > 0)));
    let spare = budget - prompts.reduce((sum, row) => sum + Math.min(each, row.promptTokens - row.promptDone), 0);
    for (const row of prompts) {
      const left = row.promptTokens - row.promptDone;
      const extra = Math.min(spare, left - Math.min(each, left));
      spare -= extra;
      const count = Math.min(each, left) + extra;
      shares.push({ row, decoding: false, start: row.promptDone, count, sample: count === left });
    }
  }

  /** Prompt tokens of the next step; beside running rows, as many as fit into its target time. */
  #promptBudget(decoding: boolean): number {
    if (!decoding) return PROMPT_STEP_TOKENS;
    if (this.#promptTokenMs === null) return CHUNK_TOKENS_FIRST;
    const decodeMs = this.#decodeStepMs ?? 0;
    return Math.floor((Math.max(MIXED_STEP_MS_MIN, 2 * decodeMs) - decodeMs) / this.#promptTokenMs);
  }
}
