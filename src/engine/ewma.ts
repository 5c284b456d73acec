/** An exponentially weighted moving average. */

/** @param weight share of the new value, 0 to 1 */
export const ewma = (average: number | null, value: number, weight: number): number =>
  average === null ? value : average + weight * (value - average);
