/** Time as a dependency, so that tests move it by hand. */

export interface Timer {
  cancel(): void;
}

export interface Clock {
  /** Unix time in milliseconds; may jump. For dates only. */
  nowMs(): number;
  /** Milliseconds since an arbitrary start, with fractions; never jumps. For durations and deadlines. */
  monotonicMs(): number;
  /** Calls back once. A pending timer does not keep the process alive. */
  after(delayMs: number, callback: () => void): Timer;
  /** Calls back again and again until cancelled. */
  every(periodMs: number, callback: () => void): Timer;
}

/** Largest delay a JavaScript timer takes; longer ones would fire at once. */
const DELAY_MS_MAX = 2 ** 31 - 1;

export const systemClock = (): Clock => ({
  nowMs: () => Date.now(),
  monotonicMs: () => performance.now(),
  after(delayMs, callback) {
    const timer = setTimeout(callback, Math.min(Math.max(0, delayMs), DELAY_MS_MAX));
    timer.unref();
    return { cancel: () => clearTimeout(timer) };
  },
  every(periodMs, callback) {
    const timer = setInterval(callback, Math.min(periodMs, DELAY_MS_MAX));
    timer.unref();
    return { cancel: () => clearInterval(timer) };
  },
});

/** Resolves after the delay; rejects with the signal's reason when it aborts first. */
export const sleep = (clock: Pick<Clock, "after">, delayMs: number, signal?: AbortSignal): Promise<void> =>
  new Promise((resolve, reject) => {
    if (signal?.aborted) {
      reject(signal.reason as Error);
      return;
    }
    const onAbort = (): void => {
      timer.cancel();
      reject(signal?.reason as Error);
    };
    const timer = clock.after(delayMs, () => {
      signal?.removeEventListener("abort", onAbort);
      resolve();
    });
    signal?.addEventListener("abort", onAbort, { once: true });
  });
