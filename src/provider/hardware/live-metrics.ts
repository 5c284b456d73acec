/** How busy the machine is right now; the first three fields are `system_metrics` of a heartbeat (protocol-trust §2.3). */

export type ThermalState = "nominal" | "fair" | "serious" | "critical";

export interface LiveMetrics {
  /** 0 to 1. */
  readonly memory_pressure: number;
  /** 1-minute load per core, 0 to 1. */
  readonly cpu_usage: number;
  readonly thermal_state: ThermalState;
  /** What this process may use at most: the machine's memory or a container's limit. */
  readonly memoryTotalBytes: number;
  /** What could be allocated now without pushing others out; file cache counts as free. */
  readonly memoryAvailableBytes: number;
}
