/** Linux: cores and memory of the machine, and the part of both that affinity and cgroups leave. */
import { describe, expect, test } from "bun:test";
import { systemClock } from "../../src/core/clock.ts";
import { hardwareSchema } from "../../src/core/hardware.ts";
import { createLog } from "../../src/core/log.ts";
import { detectHardware, performanceCores, readLiveMetrics } from "../../src/provider/hardware/hardware.ts";
import { parseCgroups, parseCpuInfo, parseCpuList } from "../../src/provider/hardware/hardware-linux.ts";
import { systemProbe } from "../../src/provider/hardware/system-probe.ts";
import { sample, sampleProbe } from "./hardware-probe.ts";

const GIB = 2 ** 30;
const machine = {
  "/proc/cpuinfo": sample("sample-cpuinfo-smt.txt"),
  "/proc/meminfo": sample("sample-meminfo.txt"),
  "/proc/loadavg": "2.00 1.00 0.50 1/100 1234\n",
  "/proc/self/status": "Name:\tx\nCpus_allowed:\tf\nCpus_allowed_list:\t0-3\n",
  "/proc/self/cgroup": "0::/\n",
  "/sys/class/dmi/id/product_name": "ProLiant DL380\n",
};
const on = (files: Record<string, string>) => sampleProbe("linux", { files: { ...machine, ...files } });
const coresOf = async (files: Record<string, string>) => {
  const hardware = await detectHardware(on(files));
  return [hardware.cpu_cores.total, performanceCores(hardware)];
};

describe("the machine", () => {
  test("two cores with two threads each", async () => {
    const hardware = await detectHardware(on({}));
    expect(hardware).toEqual({
      machine_model: "ProLiant DL380",
      chip_name: "Intel(R) Xeon(R) CPU @ 2.00GHz",
      chip_family: "Unknown",
      chip_tier: "Unknown",
      memory_gb: 16,
      memory_available_gb: 8,
      cpu_cores: { total: 4, performance: 2, efficiency: 0 },
      gpu_cores: 0,
      memory_bandwidth_gbs: 100,
    });
    expect(hardwareSchema.parse(hardware)).toEqual(hardware);
  });

  test("cores without ids count one each", () => {
    const { modelName, cpus } = parseCpuInfo(sample("sample-cpuinfo-arm.txt"));
    expect(modelName).toBe("Raspberry Pi 5 Model B Rev 1.0");
    expect(new Set(cpus.map((cpu) => cpu.core)).size).toBe(2);
  });

  test("a system that hides everything still gives a sound answer", async () => {
    const hardware = await detectHardware(sampleProbe("linux", {}));
    expect(hardwareSchema.parse(hardware)).toEqual(hardware);
    expect(hardware).toMatchObject({
      machine_model: "Linux",
      chip_name: "Unknown CPU",
      memory_gb: 0,
      cpu_cores: { total: 1, performance: 1 },
    });
    expect((await readLiveMetrics(sampleProbe("linux", {}))).memory_pressure).toBe(0);
  });

  test("CPU lists", () => {
    expect([...parseCpuList("0-2,5\n")!]).toEqual([0, 1, 2, 5]);
    for (const text of ["", "a", "1-", "0--2", "123456"]) expect(parseCpuList(text)).toBeNull();
  });
});

describe("the share of it", () => {
  test("affinity to both threads of one core leaves one core", async () => {
    expect(await coresOf({ "/proc/self/status": "Cpus_allowed_list:\t0,2\n" })).toEqual([2, 1]);
    expect(await coresOf({ "/proc/self/status": "Cpus_allowed_list:\t0-1\n" })).toEqual([2, 2]);
  });

  test("a v2 quota, its own or a parent's, whichever is tighter", async () => {
    const cgroup = { "/proc/self/cgroup": "0::/a/b\n" };
    expect(await coresOf({ ...cgroup, "/sys/fs/cgroup/a/b/cpu.max": "max 100000\n" })).toEqual([4, 2]);
    expect(await coresOf({ ...cgroup, "/sys/fs/cgroup/a/b/cpu.max": "150000 100000\n" })).toEqual([4, 1]);
    expect(
      await coresOf({
        ...cgroup,
        "/sys/fs/cgroup/a/b/cpu.max": "400000 100000\n",
        "/sys/fs/cgroup/a/cpu.max": "100000 100000\n",
      }),
    ).toEqual([4, 1]);
    expect(await coresOf({ ...cgroup, "/sys/fs/cgroup/a/b/cpu.max": "50000 100000\n" })).toEqual([4, 1]);
  });

  test("a v2 quota seen from inside a container, where the named path does not exist", async () => {
    expect(
      await coresOf({ "/proc/self/cgroup": "0::/docker/abc\n", "/sys/fs/cgroup/cpu.max": "100000 100000\n" }),
    ).toEqual([4, 1]);
  });

  test("a v1 quota, and none", async () => {
    const cgroup = { "/proc/self/cgroup": "4:cpu,cpuacct:/box\n3:memory:/box\n" };
    const files = (quota: string) => ({
      ...cgroup,
      "/sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": quota,
      "/sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000\n",
    });
    expect(await coresOf(files("100000\n"))).toEqual([4, 1]);
    expect(await coresOf(files("-1\n"))).toEqual([4, 2]);
  });

  test("a v2 memory limit counts its own usage without file cache", async () => {
    const files = {
      "/proc/self/cgroup": "0::/box\n",
      "/sys/fs/cgroup/box/memory.max": `${4 * GIB}\n`,
      "/sys/fs/cgroup/box/memory.current": `${3 * GIB}\n`,
      "/sys/fs/cgroup/box/memory.stat": `anon ${GIB}\ninactive_file ${2 * GIB}\n`,
    };
    expect(await detectHardware(on(files))).toMatchObject({ memory_gb: 4, memory_available_gb: 3 });
    expect(await readLiveMetrics(on(files))).toEqual({
      memory_pressure: 0.25,
      cpu_usage: 0.5,
      thermal_state: "nominal",
      memoryTotalBytes: 4 * GIB,
      memoryAvailableBytes: 3 * GIB,
    });
  });

  test("a v1 memory limit, and the number that means none", async () => {
    const files = (limit: string) => ({
      "/proc/self/cgroup": "3:memory:/box\n",
      "/sys/fs/cgroup/memory/box/memory.limit_in_bytes": limit,
      "/sys/fs/cgroup/memory/box/memory.usage_in_bytes": `${GIB}\n`,
    });
    expect(await detectHardware(on(files(`${2 * GIB}\n`)))).toMatchObject({ memory_gb: 2, memory_available_gb: 1 });
    expect(await detectHardware(on(files("9223372036854771712\n")))).toMatchObject({
      memory_gb: 16,
      memory_available_gb: 8,
    });
  });

  test("`max`, empty and broken limit files mean no limit", async () => {
    for (const text of ["max\n", "", "\n", "x"])
      expect(
        await detectHardware(on({ "/sys/fs/cgroup//memory.max": text, "/sys/fs/cgroup/memory.max": text })),
      ).toMatchObject({ memory_gb: 16 });
  });

  test("a hostile cgroup path asks a bounded number of folders", () => {
    expect(parseCgroups(`0::${"/x".repeat(5000)}\n`).v2.length).toBeLessThanOrEqual(33);
  });
});

test("this machine: files and commands through the real probe", async () => {
  const lines: string[] = [];
  const log = createLog({
    clock: { nowMs: () => 0 },
    level: "debug",
    format: "json",
    write: (line) => void lines.push(line),
  });
  const probe = systemProbe({ platform: process.platform, log, clock: systemClock() });
  expect(await probe.run("/bin/echo", ["hello"])).toBe("hello\n");
  expect(await probe.run("/nonexistent/tool", [])).toBeNull();
  expect(await probe.readFile("/nonexistent/file")).toBeNull();
  expect(lines.map((line) => (JSON.parse(line) as { event: string }).event)).toEqual([
    "system_command_missing",
    "system_file_unreadable",
  ]);
  const hardware = await detectHardware(probe);
  expect(hardwareSchema.parse(hardware)).toEqual(hardware);
  const metrics = await readLiveMetrics(probe);
  expect(metrics.memoryTotalBytes).toBeGreaterThan(0);
  expect(metrics.memoryAvailableBytes).toBeLessThanOrEqual(metrics.memoryTotalBytes);
});

test("a command that does not end, nor lets go of its output, is left behind at the deadline", async () => {
  const lines: string[] = [];
  const log = createLog({
    clock: { nowMs: () => 0 },
    level: "debug",
    format: "json",
    write: (line) => void lines.push(line),
  });
  const probe = systemProbe({ platform: "linux", log, clock: systemClock(), commandDeadlineMs: 50 });
  const startMs = performance.now();
  expect(await probe.run("/bin/sh", ["-c", "sleep 3 & wait"])).toBeNull();
  expect(performance.now() - startMs).toBeLessThan(2000);
  expect(lines.join("")).toContain("system_command_late");
});
