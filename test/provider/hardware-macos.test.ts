/** macOS parsers on samples (their README says what each follows), and detection made of them. */
import { describe, expect, test } from "bun:test";
import { hardwareSchema } from "../../src/core/hardware.ts";
import { detectHardware, performanceCores, readLiveMetrics } from "../../src/provider/hardware/hardware.ts";
import {
  availableBytesOf,
  memoryPressureOf,
  parseDisplays,
  parseLoadAverage,
  parseThermal,
  parseVmStat,
} from "../../src/provider/hardware/hardware-macos.ts";
import { bandwidthOf, chipOf } from "../../src/provider/hardware/hardware-tables.ts";
import { sample, sampleProbe } from "./hardware-probe.ts";

const SYSCTL =
  "/usr/sbin/sysctl hw.model hw.memsize hw.ncpu hw.perflevel0.logicalcpu hw.perflevel1.logicalcpu machdep.cpu.brand_string";
const DISPLAYS = "/usr/sbin/system_profiler SPDisplaysDataType -json";

describe("detection", () => {
  test("a Mac with everything", async () => {
    const probe = sampleProbe("darwin", {
      commands: { [SYSCTL]: sample("sample-sysctl-m4-pro.txt"), [DISPLAYS]: sample("sample-displays-m4-pro.json") },
    });
    const hardware = await detectHardware(probe);
    expect(hardware).toEqual({
      machine_model: "Mac16,11",
      chip_name: "Apple M4 Pro",
      chip_family: "M4",
      chip_tier: "Pro",
      memory_gb: 48,
      memory_available_gb: 44,
      cpu_cores: { total: 14, performance: 10, efficiency: 4 },
      gpu_cores: 20,
      memory_bandwidth_gbs: 273,
    });
    expect(hardwareSchema.parse(hardware)).toEqual(hardware);
    expect(performanceCores(hardware)).toBe(10);
  });

  test("a Mac that says nothing gets the fallbacks and still fits the wire", async () => {
    const hardware = await detectHardware(sampleProbe("darwin", {}));
    expect(hardware).toMatchObject({
      chip_name: "Unknown Apple Silicon",
      chip_family: "Unknown",
      memory_gb: 16,
      memory_bandwidth_gbs: 100,
    });
    expect(hardwareSchema.parse(hardware)).toEqual(hardware);
    expect(performanceCores(hardware)).toBe(1);
  });

  test("without performance levels all cores count, without brand the GPU names the chip", async () => {
    const hardware = await detectHardware(
      sampleProbe("darwin", {
        commands: {
          [SYSCTL]: "hw.ncpu: 8\nhw.memsize: 17179869184\n",
          [DISPLAYS]: sample("sample-displays-m4-pro.json"),
        },
      }),
    );
    expect(hardware.cpu_cores).toEqual({ total: 8, performance: 8, efficiency: 0 });
    expect([hardware.chip_name, hardware.chip_tier]).toEqual(["Apple M4 Pro", "Pro"]);
  });

  test("another system is refused in words", async () => {
    const detecting = detectHardware(sampleProbe("win32", {}));
    expect(await detecting.catch((thrown: unknown) => thrown)).toMatchObject({ code: "system_too_old" });
  });
});

describe("chips", () => {
  test("family and tier", () => {
    expect(chipOf("Apple M1")).toEqual({ family: "M1", tier: "Base" });
    expect(chipOf("Apple M2 Ultra")).toEqual({ family: "M2", tier: "Ultra" });
    expect(chipOf("Apple M5 Max")).toEqual({ family: "M5", tier: "Max" });
    expect(chipOf("Apple M6")).toEqual({ family: "M6", tier: "Base" });
    expect(chipOf("Intel(R) Core(TM) m3-7Y32")).toEqual({ family: "Unknown", tier: "Unknown" });
    expect(chipOf("Unknown Apple Silicon")).toEqual({ family: "Unknown", tier: "Unknown" });
  });

  test("bandwidth", () => {
    expect(bandwidthOf("M1", "Base", 8)).toBe(68);
    expect(bandwidthOf("M3", "Max", 30)).toBe(300);
    expect(bandwidthOf("M3", "Max", 40)).toBe(400);
    expect(bandwidthOf("M4", "Max", 32)).toBe(410);
    expect(bandwidthOf("M5", "Max", 40)).toBe(614);
    expect(bandwidthOf("M3", "Ultra", 80)).toBe(819);
    expect(bandwidthOf("M4", "Ultra", 80)).toBe(100);
    expect(bandwidthOf("Unknown", "Unknown", 0)).toBe(100);
  });
});

describe("live metrics", () => {
  const vm = parseVmStat(sample("sample-vm-stat.txt"))!;

  test("memory pressure is used pages over used, inactive, speculative and free ones", () => {
    expect(memoryPressureOf(vm)).toBeCloseTo(440_000 / 790_000, 10);
  });

  test("available memory is what no process holds", () => {
    expect(availableBytesOf(vm, 16 * 2 ** 30)).toBe(16 * 2 ** 30 - 490_000 * 16_384);
  });

  test("thermal state by speed limit", () => {
    expect(parseThermal(sample("sample-pmset-therm-limited.txt"))).toBe("serious");
    const at = (limit: number) => parseThermal(`CPU_Speed_Limit = ${limit}`);
    expect([100, 99, 80, 79, 50, 49].map(at)).toEqual(["nominal", "fair", "fair", "serious", "serious", "critical"]);
    expect(parseThermal("Note: No thermal warning level has been recorded")).toBe("nominal");
  });

  test("load average, displays and vm_stat that are no such thing", () => {
    expect([parseLoadAverage("{ 1.52 1.61 1.70 }"), parseLoadAverage("")]).toEqual([1.52, 0]);
    expect([
      parseDisplays("{"),
      parseDisplays("[]"),
      parseDisplays('{"SPDisplaysDataType":[{"sppci_model":""}]}'),
    ]).toEqual([null, null, null]);
    expect(parseVmStat("nothing")).toBeNull();
  });

  test("all together, and with nothing answered", async () => {
    const probe = sampleProbe("darwin", {
      commands: {
        "/usr/bin/vm_stat": sample("sample-vm-stat.txt"),
        "/usr/sbin/sysctl -n vm.loadavg": "{ 7.00 6.00 5.00 }\n",
        "/usr/bin/pmset -g therm": sample("sample-pmset-therm-limited.txt"),
        "/usr/sbin/sysctl hw.memsize hw.ncpu": "hw.memsize: 17179869184\nhw.ncpu: 14\n",
      },
    });
    expect(await readLiveMetrics(probe)).toMatchObject({
      cpu_usage: 0.5,
      thermal_state: "serious",
      memoryTotalBytes: 2 ** 34,
    });
    expect(await readLiveMetrics(sampleProbe("darwin", {}))).toEqual({
      memory_pressure: 0,
      cpu_usage: 0,
      thermal_state: "nominal",
      memoryTotalBytes: 2 ** 34,
      memoryAvailableBytes: 12 * 2 ** 30,
    });
  });
});
