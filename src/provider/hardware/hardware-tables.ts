/** What a chip's name tells: family, tier and memory bandwidth (provider-cli §5.1). */
import type { Hardware } from "../../core/hardware.ts";

export type ChipFamily = Hardware["chip_family"];
export type ChipTier = Hardware["chip_tier"];

const FAMILIES = ["M6", "M5", "M4", "M3", "M2", "M1"] as const;
const TIERS = ["Ultra", "Max", "Pro"] as const;
/** What everything unlisted counts as. */
const BANDWIDTH_DEFAULT_GBS = 100;
/** From this many GPU cores on, a Max is the wider of two memory layouts. */
const MAX_WIDE_GPU_CORES = 40;

const BANDWIDTH_GBS: Readonly<
  Partial<Record<`${ChipFamily} ${ChipTier}`, number | readonly [narrow: number, wide: number]>>
> = {
  "M1 Base": 68,
  "M1 Pro": 200,
  "M1 Max": 400,
  "M1 Ultra": 800,
  "M2 Base": 100,
  "M2 Pro": 200,
  "M2 Max": 400,
  "M2 Ultra": 800,
  "M3 Base": 100,
  "M3 Pro": 150,
  "M3 Max": [300, 400],
  "M3 Ultra": 819,
  "M4 Base": 120,
  "M4 Pro": 273,
  "M4 Max": [410, 546],
  "M5 Base": 153,
  "M5 Pro": 307,
  "M5 Max": [460, 614],
};

/** Only Apple's chips have a family: a name without "apple" in it could hold "m2" by chance. */
export const chipOf = (chipName: string): { readonly family: ChipFamily; readonly tier: ChipTier } => {
  const name = chipName.toLowerCase();
  const family = name.includes("apple") ? FAMILIES.find((word) => name.includes(word.toLowerCase())) : undefined;
  if (family === undefined) return { family: "Unknown", tier: "Unknown" };
  return { family, tier: TIERS.find((word) => name.includes(word.toLowerCase())) ?? "Base" };
};

/** GB/s of unified memory. */
export const bandwidthOf = (family: ChipFamily, tier: ChipTier, gpuCores: number): number => {
  const known = BANDWIDTH_GBS[`${family} ${tier}`] ?? BANDWIDTH_DEFAULT_GBS;
  if (typeof known === "number") return known;
  return known[gpuCores >= MAX_WIDE_GPU_CORES ? 1 : 0];
};
