/** Reads what Linux says about the machine and about the share of it that this process may use (affinity, cgroups v1 and v2). */
import type { Hardware } from "../../core/hardware.ts";
import { GIB, KIB } from "../../core/units.ts";
import { bandwidthOf, chipOf } from "./hardware-tables.ts";
import type { LiveMetrics } from "./live-metrics.ts";
import type { SystemProbe } from "./system-probe.ts";

export interface CpuInfo {
  readonly modelName: string | null;
  /** One per logical CPU: its number and the physical core it belongs to. */
  readonly cpus: readonly { readonly id: number; readonly core: string }[];
}

/** `/proc/cpuinfo`: blocks of `key : value`. Without core ids (ARM, some virtual machines) each CPU is a core. */
export const parseCpuInfo = (text: string): CpuInfo => {
  const cpus: { id: number; core: string }[] = [];
  let modelName: string | null = null;
  for (const block of text.split(/\n\s*\n/)) {
    const fields = new Map(
      block.split("\n").flatMap((line) => {
        const colon = line.indexOf(":");
        return colon < 0 ? [] : [[line.slice(0, colon).trim(), line.slice(colon + 1).trim()] as const];
      }),
    );
    modelName ??= fields.get("model name") ?? fields.get("Model") ?? null;
    const id = Number(fields.get("processor") ?? Number.NaN);
    if (!Number.isSafeInteger(id)) continue;
    const coreId = fields.get("core id");
    cpus.push({ id, core: coreId === undefined ? `cpu ${id}` : `${fields.get("physical id") ?? "0"}/${coreId}` });
  }
  return { modelName, cpus };
};

/** `0-3,8` as a set; null when the text is none. */
export const parseCpuList = (text: string): ReadonlySet<number> | null => {
  const cpus = new Set<number>();
  for (const range of text.trim().split(",")) {
    const found = /^(\d{1,5})(?:-(\d{1,5}))?$/.exec(range);
    if (found === null) return null;
    const first = Number(found[1]);
    for (let cpu = first; cpu <= Number(found[2] ?? first); cpu += 1) cpus.add(cpu);
  }
  return cpus;
};

/** Kilobyte lines of `/proc/meminfo` in bytes. */
export const parseMemInfo = (text: string): ReadonlyMap<string, number> =>
  new Map([...text.matchAll(/^(\w+):\s+(\d+) kB$/gm)].map(([, key = "", value]) => [key, Number(value) * KIB]));

/** Folders that hold this process's limits, its own first, then its parents': the tightest of all counts. */
export interface CgroupFolders {
  readonly v2: readonly string[];
  readonly cpu: readonly string[];
  readonly memory: readonly string[];
}

const DEPTH_MAX = 32;

/** In a container the named path often does not exist below the mount; its parents and the mount itself then answer. */
const upwards = (root: string, path: string): string[] => {
  const segments = path
    .split("/")
    .filter((segment) => segment !== "")
    .slice(0, DEPTH_MAX);
  return Array.from({ length: segments.length + 1 }, (_, up) =>
    [root, ...segments.slice(0, segments.length - up)].join("/"),
  );
};

export const parseCgroups = (text: string): CgroupFolders => {
  const root = "/sys/fs/cgroup";
  const folders: CgroupFolders = { v2: [], cpu: [], memory: [] };
  const found = { ...folders };
  for (const line of text.split("\n")) {
    const [, controllers, path] = /^\d+:([^:]*):(.*)$/.exec(line) ?? [];
    if (controllers === undefined || path === undefined) continue;
    const names = controllers.split(",");
    if (controllers === "") found.v2 = upwards(root, path);
    if (names.includes("cpu")) found.cpu = [...upwards(`${root}/cpu`, path), ...upwards(`${root}/cpu,cpuacct`, path)];
    if (names.includes("memory")) found.memory = upwards(`${root}/memory`, path);
  }
  return found;
};

const numberOf = (text: string | null): number | null => {
  const value = text === null ? Number.NaN : Number(text.trim());
  return Number.isFinite(value) && text?.trim() !== "" ? value : null;
};

const smallest = (values: readonly (number | null)[]): number | null => {
  const known = values.filter((value) => value !== null);
  return known.length === 0 ? null : Math.min(...known);
};

/** CPUs that the quota allows, e.g. 1.5; null = no quota. */
const readCpuQuota = async (probe: SystemProbe, cgroups: CgroupFolders): Promise<number | null> => {
  const v2 = cgroups.v2.map(async (folder) => {
    const [quota, period] = ((await probe.readFile(`${folder}/cpu.max`)) ?? "max").trim().split(/\s+/).map(Number);
    return quota !== undefined && period !== undefined && quota > 0 && period > 0 ? quota / period : null;
  });
  const v1 = cgroups.cpu.map(async (folder) => {
    const quota = numberOf(await probe.readFile(`${folder}/cpu.cfs_quota_us`));
    const period = numberOf(await probe.readFile(`${folder}/cpu.cfs_period_us`));
    return quota !== null && period !== null && quota > 0 && period > 0 ? quota / period : null;
  });
  return smallest(await Promise.all([...v2, ...v1]));
};

interface MemoryLimit {
  readonly limitBytes: number;
  readonly availableBytes: number;
}

const MEMORY_FILES = {
  v2: { limit: "memory.max", usage: "memory.current", cache: /^inactive_file (\d+)$/m },
  v1: { limit: "memory.limit_in_bytes", usage: "memory.usage_in_bytes", cache: /^total_inactive_file (\d+)$/m },
} as const;

/** One folder's limit and what is left of it; null = none. File cache is given up on demand, so it counts as left. */
const readMemoryLimit = async (
  probe: SystemProbe,
  folder: string,
  files: (typeof MEMORY_FILES)["v1" | "v2"],
): Promise<MemoryLimit | null> => {
  const limitBytes = numberOf(await probe.readFile(`${folder}/${files.limit}`));
  if (limitBytes === null || limitBytes <= 0) return null;
  const usage = numberOf(await probe.readFile(`${folder}/${files.usage}`)) ?? 0;
  const cache = Number(files.cache.exec((await probe.readFile(`${folder}/memory.stat`)) ?? "")?.[1] ?? 0);
  return { limitBytes, availableBytes: Math.max(0, limitBytes - Math.max(0, usage - cache)) };
};

interface LinuxMemory {
  readonly totalBytes: number;
  readonly availableBytes: number;
}

const readMemory = async (probe: SystemProbe, cgroups: CgroupFolders): Promise<LinuxMemory> => {
  const info = parseMemInfo((await probe.readFile("/proc/meminfo")) ?? "");
  const machineBytes = info.get("MemTotal") ?? 0;
  const limits = await Promise.all([
    ...cgroups.v2.map((folder) => readMemoryLimit(probe, folder, MEMORY_FILES.v2)),
    ...cgroups.memory.map((folder) => readMemoryLimit(probe, folder, MEMORY_FILES.v1)),
  ]);
  // "No limit" is written as a number far above any memory.
  const real = limits.filter((limit) => limit !== null && limit.limitBytes < machineBytes) as readonly MemoryLimit[];
  return {
    totalBytes: Math.min(machineBytes, ...real.map((limit) => limit.limitBytes)),
    availableBytes: Math.min(
      info.get("MemAvailable") ?? info.get("MemFree") ?? 0,
      ...real.map((limit) => limit.availableBytes),
    ),
  };
};

interface LinuxCpus {
  readonly modelName: string | null;
  /** Logical CPUs this process may run on. */
  readonly allowed: number;
  /** Physical cores of those, no more than the quota pays for; at least 1. */
  readonly physical: number;
}

const readCpus = async (probe: SystemProbe, cgroups: CgroupFolders): Promise<LinuxCpus> => {
  const { modelName, cpus } = parseCpuInfo((await probe.readFile("/proc/cpuinfo")) ?? "");
  const status = (await probe.readFile("/proc/self/status")) ?? "";
  const affinity = parseCpuList(/^Cpus_allowed_list:\s*(.+)$/m.exec(status)?.[1] ?? "");
  const allowed = affinity === null ? cpus : cpus.filter((cpu) => affinity.has(cpu.id));
  const cores = new Set(allowed.map((cpu) => cpu.core)).size;
  const quota = (await readCpuQuota(probe, cgroups)) ?? Infinity;
  return {
    modelName,
    allowed: Math.max(1, allowed.length),
    physical: Math.max(1, Math.min(cores, Math.floor(quota))),
  };
};

const readCgroups = async (probe: SystemProbe): Promise<CgroupFolders> =>
  parseCgroups((await probe.readFile("/proc/self/cgroup")) ?? "");

/** Vendors leave control characters and placeholders in these files. */
const firstLine = (text: string | null): string | null => {
  const line = (text ?? "")
    .replaceAll(/[\p{Cc}\p{Zl}\p{Zp}]+/gu, " ")
    .trim()
    .slice(0, 128);
  return line === "" ? null : line;
};

export const detectLinux = async (probe: SystemProbe): Promise<Hardware> => {
  const cgroups = await readCgroups(probe);
  const [cpus, memory] = await Promise.all([readCpus(probe, cgroups), readMemory(probe, cgroups)]);
  const model =
    firstLine(await probe.readFile("/sys/class/dmi/id/product_name")) ??
    firstLine(await probe.readFile("/proc/device-tree/model"));
  const chipName = firstLine(cpus.modelName) ?? "Unknown CPU";
  const { family, tier } = chipOf(chipName);
  return {
    machine_model: model ?? "Linux",
    chip_name: chipName,
    chip_family: family,
    chip_tier: tier,
    memory_gb: Math.floor(memory.totalBytes / GIB),
    memory_available_gb: Math.round((memory.availableBytes / GIB) * 100) / 100,
    cpu_cores: { total: cpus.allowed, performance: cpus.physical, efficiency: 0 },
    gpu_cores: 0,
    memory_bandwidth_gbs: bandwidthOf(family, tier, 0),
  };
};

/** Linux has no thermal state of its own; unknown is nominal (provider-cli §5.2). */
export const readLinuxMetrics = async (probe: SystemProbe): Promise<LiveMetrics> => {
  const cgroups = await readCgroups(probe);
  const [cpus, memory, loadText] = await Promise.all([
    readCpus(probe, cgroups),
    readMemory(probe, cgroups),
    probe.readFile("/proc/loadavg"),
  ]);
  const load = Number.parseFloat(loadText ?? "0");
  return {
    memory_pressure:
      memory.totalBytes === 0 ? 0 : Math.min(1, Math.max(0, 1 - memory.availableBytes / memory.totalBytes)),
    cpu_usage: Math.min(1, (Number.isFinite(load) ? load : 0) / cpus.allowed),
    thermal_state: "nominal",
    memoryTotalBytes: memory.totalBytes,
    memoryAvailableBytes: memory.availableBytes,
  };
};
