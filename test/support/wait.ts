/** Waiting for a condition with a deadline, instead of sleeping and hoping. */

/** Resolves with the first value that is neither false, null nor undefined; rejects after the deadline, naming what was awaited. */
export const waitFor = async <T>(
  what: string,
  probe: () => T | Promise<T>,
  deadlineMs = 10_000,
): Promise<Exclude<T, false | null | undefined>> => {
  const untilMs = performance.now() + deadlineMs;
  for (;;) {
    const value = await probe();
    if (value !== false && value !== null && value !== undefined) return value as Exclude<T, false | null | undefined>;
    if (performance.now() > untilMs) throw new Error(`timed out after ${deadlineMs} ms waiting for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
};
