/** What this machine is and how busy it is, on macOS and Linux, as the wire wants it (protocol-trust §2.2–2.3). */
import type { Hardware } from "../../core/hardware.ts";
import { Fault } from "../../core/fault.ts";
import { detectLinux, readLinuxMetrics } from "./hardware-linux.ts";
import { detectMac, readMacMetrics } from "./hardware-macos.ts";
import type { LiveMetrics } from "./live-metrics.ts";
import type { SystemProbe } from "./system-probe.ts";

const unsupported = (platform: string): Fault =>
  new Fault("system_too_old", `this system (${platform}) is not supported`, {
    hint: "use macOS on Apple silicon, or Linux",
  });

/** Never fails on a supported system: what cannot be found out gets the sheet's fallback. */
export const detectHardware = async (probe: SystemProbe): Promise<Hardware> => {
  if (probe.platform === "darwin") return detectMac(probe);
  if (probe.platform === "linux") return detectLinux(probe);
  throw unsupported(probe.platform);
};

export const readLiveMetrics = async (probe: SystemProbe): Promise<LiveMetrics> => {
  if (probe.platform === "darwin") return readMacMetrics(probe);
  if (probe.platform === "linux") return readLinuxMetrics(probe);
  throw unsupported(probe.platform);
};

/** Cores worth an engine thread each; on Linux physical cores within this process's affinity and quota. At least 1. */
export const performanceCores = (hardware: Pick<Hardware, "cpu_cores">): number =>
  Math.max(1, hardware.cpu_cores.performance);
