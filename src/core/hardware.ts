/** What a provider says about its machine: part of `register` and of the signed statement (protocol-trust §2.2). */
import { z } from "zod";
import { clampedCountField, clampedField, foldedField, lineField } from "./fields.ts";

const CHIP_FAMILIES = ["M1", "M2", "M3", "M4", "M5", "M6", "Unknown"] as const;
const CHIP_TIERS = ["Base", "Pro", "Max", "Ultra", "Unknown"] as const;

/** Numbers are clamped as in protocol-trust §1.4. A machine that is no Apple silicon has family and tier `Unknown`. */
export const hardwareSchema = z.object({
  /** e.g. `Mac16,1`, or the vendor's name of another machine. */
  machine_model: lineField(128),
  chip_name: lineField(128),
  chip_family: foldedField(CHIP_FAMILIES, "Unknown"),
  chip_tier: foldedField(CHIP_TIERS, "Unknown"),
  memory_gb: clampedField(1024),
  memory_available_gb: clampedField(1024),
  cpu_cores: z.object({
    total: clampedCountField(4096),
    performance: clampedCountField(4096),
    efficiency: clampedCountField(4096),
  }),
  gpu_cores: clampedCountField(65_536),
  memory_bandwidth_gbs: clampedField(2000),
});
export type Hardware = z.infer<typeof hardwareSchema>;
