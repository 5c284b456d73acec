/** Reads what macOS tools print about the machine (provider-cli §5.1–5.2). Pure parsers first, then the questions. */
import type { Hardware } from "../../core/hardware.ts";
import { GIB } from "../../core/units.ts";
import { bandwidthOf, chipOf } from "./hardware-tables.ts";
import type { LiveMetrics, ThermalState } from "./live-metrics.ts";
import type { SystemProbe } from "./system-probe.ts";

const MEMORY_FALLBACK_BYTES = 16 * GIB;
/** What the system itself needs (provider-cli §5.1). */
const SYSTEM_RESERVE_GB = 4;
const SYSCTL_KEYS = [
  "hw.model",
  "hw.memsize",
  "hw.ncpu",
  "hw.perflevel0.logicalcpu",
  "hw.perflevel1.logicalcpu",
  "machdep.cpu.brand_string",
];

/** `key: value` lines; keys the system does not know are simply not there. */
export const parseSysctl = (text: string): ReadonlyMap<string, string> =>
  new Map(
    text.split("\n").flatMap((line) => {
      const colon = line.indexOf(": ");
      return colon < 0 ? [] : [[line.slice(0, colon), line.slice(colon + 2).trim()] as const];
    }),
  );

const isRecord = (value: unknown): value is Readonly<Record<string, unknown>> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

export interface MacGraphics {
  readonly chipName: string;
  readonly cores: number;
}

/** `system_profiler SPDisplaysDataType -json`: the first entry with a model; null when the text is none. */
export const parseDisplays = (text: string): MacGraphics | null => {
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch {
    return null;
  }
  const entries: unknown = isRecord(parsed) ? parsed["SPDisplaysDataType"] : undefined;
  if (!Array.isArray(entries)) return null;
  for (const entry of entries as readonly unknown[]) {
    if (!isRecord(entry)) continue;
    const model = entry["sppci_model"];
    if (typeof model !== "string" || model === "") continue;
    const cores = Number(entry["sppci_cores"] ?? entry["sppci_gpu_core_count"]);
    return { chipName: model, cores: Number.isSafeInteger(cores) && cores > 0 ? cores : 0 };
  }
  return null;
};

export interface VmStat {
  readonly pageBytes: number;
  /** Page counts by the label before the colon. */
  readonly pages: ReadonlyMap<string, number>;
}

export const parseVmStat = (text: string): VmStat | null => {
  const pageBytes = Number(/page size of (\d+) bytes/.exec(text)?.[1]);
  if (!Number.isSafeInteger(pageBytes)) return null;
  const pages = new Map<string, number>();
  for (const [, label = "", count = ""] of text.matchAll(/^"?([^":\n]+)"?:\s+(\d+)\.?$/gm))
    pages.set(label, Number(count));
  return { pageBytes, pages };
};

/** Used pages / (used + inactive + speculative + free). */
export const memoryPressureOf = ({ pages }: VmStat): number => {
  const count = (label: string): number => pages.get(label) ?? 0;
  const used = count("Pages active") + count("Pages wired down") + count("Pages occupied by compressor");
  const total = used + count("Pages inactive") + count("Pages speculative") + count("Pages free");
  return total === 0 ? 0 : used / total;
};

/** What no process holds: file cache counts as available, because the system gives it up on demand. */
export const availableBytesOf = ({ pages, pageBytes }: VmStat, totalBytes: number): number => {
  const count = (label: string): number => pages.get(label) ?? 0;
  const held = pages.get("Anonymous pages") ?? count("Pages active");
  const usedPages = held + count("Pages wired down") + count("Pages occupied by compressor");
  return Math.max(0, totalBytes - usedPages * pageBytes);
};

/** `{ 1.52 1.61 1.70 }`: the first number. */
export const parseLoadAverage = (text: string): number => {
  const load = Number.parseFloat(text.replace("{", ""));
  return Number.isFinite(load) ? load : 0;
};

/** `pmset -g therm`: the speed limit in percent; nominal when there is none. */
export const parseThermal = (text: string): ThermalState => {
  const limit = Number(/CPU_Speed_Limit\s*=\s*(\d+)/.exec(text)?.[1] ?? 100);
  if (limit >= 100) return "nominal";
  if (limit >= 80) return "fair";
  return limit >= 50 ? "serious" : "critical";
};

export const detectMac = async (probe: SystemProbe): Promise<Hardware> => {
  const [sysctlText, displaysText] = await Promise.all([
    probe.run("/usr/sbin/sysctl", SYSCTL_KEYS),
    probe.run("/usr/sbin/system_profiler", ["SPDisplaysDataType", "-json"]),
  ]);
  const sysctl = parseSysctl(sysctlText ?? "");
  const number = (key: string): number | undefined => {
    const value = Number(sysctl.get(key));
    return Number.isSafeInteger(value) && value >= 0 ? value : undefined;
  };
  const graphics = parseDisplays(displaysText ?? "");
  const chipName = sysctl.get("machdep.cpu.brand_string") ?? graphics?.chipName ?? "Unknown Apple Silicon";
  const { family, tier } = chipOf(chipName);
  const memoryGb = Math.floor((number("hw.memsize") ?? MEMORY_FALLBACK_BYTES) / GIB);
  const total = number("hw.ncpu") ?? 1;
  const gpuCores = graphics?.cores ?? 0;
  return {
    machine_model: sysctl.get("hw.model") ?? "Mac",
    chip_name: chipName,
    chip_family: family,
    chip_tier: tier,
    memory_gb: memoryGb,
    memory_available_gb: Math.max(0, memoryGb - SYSTEM_RESERVE_GB),
    cpu_cores: {
      total,
      performance: number("hw.perflevel0.logicalcpu") ?? total,
      efficiency: number("hw.perflevel1.logicalcpu") ?? 0,
    },
    gpu_cores: gpuCores,
    memory_bandwidth_gbs: bandwidthOf(family, tier, gpuCores),
  };
};

export const readMacMetrics = async (probe: SystemProbe): Promise<LiveMetrics> => {
  const [vmText, loadText, thermalText, sysctlText] = await Promise.all([
    probe.run("/usr/bin/vm_stat", []),
    probe.run("/usr/sbin/sysctl", ["-n", "vm.loadavg"]),
    probe.run("/usr/bin/pmset", ["-g", "therm"]),
    probe.run("/usr/sbin/sysctl", ["hw.memsize", "hw.ncpu"]),
  ]);
  const vm = parseVmStat(vmText ?? "");
  const sysctl = parseSysctl(sysctlText ?? "");
  const totalBytes = Number(sysctl.get("hw.memsize") ?? MEMORY_FALLBACK_BYTES);
  const cores = Math.max(1, Number(sysctl.get("hw.ncpu") ?? 1));
  return {
    memory_pressure: vm === null ? 0 : memoryPressureOf(vm),
    cpu_usage: Math.min(1, parseLoadAverage(loadText ?? "") / cores),
    thermal_state: parseThermal(thermalText ?? ""),
    memoryTotalBytes: totalBytes,
    memoryAvailableBytes:
      vm === null ? Math.max(0, totalBytes - SYSTEM_RESERVE_GB * GIB) : availableBytesOf(vm, totalBytes),
  };
};
