/** An exponentially weighted moving average: the newest value counts a fifth. */

const WEIGHT = 0.2;

export const ewma = (average: number | null, value: number): number =>
  average === null ? value : average + WEIGHT * (value - average);
