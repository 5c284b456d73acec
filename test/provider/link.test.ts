/** The link's shell: pings, silence, sleep, backoff and limits on real sockets, with a clock that the test moves. */
import { afterEach, describe, expect, test } from "bun:test";
import { createServer, connect, type Server, type Socket } from "node:net";
import { join } from "node:path";
import type { Clock } from "../../src/core/clock.ts";
import { Fault } from "../../src/core/fault.ts";
import type { LinkState } from "../../src/provider/link/link-machine.ts";
import { Link, type LinkHandlers } from "../../src/provider/link/link.ts";
import { createFakeClock, type FakeClock } from "../support/fake-clock.ts";
import { memoryLog } from "../support/memory-log.ts";
import { ScriptedCoordinator } from "../support/scripted-coordinator.ts";
import { tempDir } from "../support/temp-dir.ts";
import { waitFor } from "../support/wait.ts";

const cleanups: (() => unknown)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).toReversed()) await cleanup();
});

/** A pipe to the coordinator that can stop carrying anything without closing. */
const stallingProxy = async (port: number): Promise<{ readonly port: number; stall(): void }> => {
  const sockets: Socket[] = [];
  let stalled = false;
  const server: Server = createServer((near) => {
    const far = connect(port, "127.0.0.1");
    sockets.push(near, far);
    near.on("data", (bytes: Buffer) => {
      if (!stalled) far.write(bytes);
    });
    far.on("data", (bytes: Buffer) => {
      if (!stalled) near.write(bytes);
    });
    for (const [one, other] of [
      [near, far],
      [far, near],
    ] as const) {
      one.on("error", () => undefined);
      one.on("close", () => other.destroy());
    }
  });
  await new Promise<void>((resolve) => {
    server.listen(0, "127.0.0.1", resolve);
  });
  cleanups.push(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  const address = server.address();
  return {
    port: typeof address === "object" && address !== null ? address.port : 0,
    stall: () => {
      stalled = true;
    },
  };
};

interface Bench {
  readonly coordinator: ScriptedCoordinator;
  readonly link: Link;
  readonly clock: FakeClock;
  readonly states: LinkState["phase"][];
  readonly faults: Fault[];
  readonly resumeTokens: (string | null)[];
  lost: number;
}

/** Handlers that prove nothing: this coordinator admits by saying so. */
const openBench = async (
  options: {
    readonly through?: (port: number) => Promise<number>;
    readonly fraction?: number;
    readonly clock?: (clock: FakeClock) => Clock;
  } = {},
): Promise<Bench> => {
  const dir = await tempDir();
  const coordinator = await ScriptedCoordinator.start({ keyPath: join(dir.path, "key"), automatic: false });
  cleanups.push(
    () => dir[Symbol.asyncDispose](),
    () => coordinator[Symbol.asyncDispose](),
  );
  const port = (await options.through?.(coordinator.port)) ?? coordinator.port;
  const clock = createFakeClock();
  const states: LinkState["phase"][] = [];
  const faults: Fault[] = [];
  const resumeTokens: (string | null)[] = [];
  const zero = Buffer.alloc(32).toString("base64");
  const handlers: LinkHandlers = {
    register: (token) => {
      resumeTokens.push(token);
      const hardware = {
        machine_model: "",
        chip_name: "",
        chip_family: "Unknown",
        chip_tier: "Unknown",
        memory_gb: 1,
        memory_available_gb: 1,
        cpu_cores: { total: 1, performance: 1, efficiency: 0 },
        gpu_cores: 0,
        memory_bandwidth_gbs: 0,
      } as const;
      return {
        type: "register",
        protocol: 1,
        version: "1",
        capabilities: [],
        identity_key: `B${"A".repeat(86)}`,
        k_public: zero,
        hardware,
        models: [],
      };
    },
    verifyWelcome: () => Promise.resolve(),
    attest: () => Promise.resolve({ type: "attestation_response", statement: "a.b", signature: "c" }),
    heartbeat: (seq) => ({
      type: "heartbeat",
      seq,
      status: "idle",
      stats: { requests_served: 0, tokens_generated: 0 },
      system_metrics: { memory_pressure: 0, cpu_usage: 0, thermal_state: "nominal" },
      backend_capacity: {
        slots: [],
        gpu_memory_active_gb: 0,
        gpu_memory_peak_gb: 0,
        gpu_memory_cache_gb: 0,
        total_memory_gb: 0,
      },
    }),
    onRequest: () => undefined,
    onFrame: () => undefined,
    onCancel: () => undefined,
    onTrust: () => undefined,
    onDrainAck: () => undefined,
    onLost: () => {
      bench.lost += 1;
    },
    onState: (state) => states.push(state.phase),
    onFault: (fault) => faults.push(fault),
  };
  const link = new Link(
    {
      clock: options.clock?.(clock) ?? clock,
      random: { fraction: () => options.fraction ?? 0.5 },
      log: memoryLog().log,
    },
    { socketUrl: `ws://127.0.0.1:${port}/ws/provider`, secret: "secret" },
    handlers,
  );
  cleanups.push(() => link.stop());
  const bench: Bench = { coordinator, link, clock, states, faults, resumeTokens, lost: 0 };
  return bench;
};

const serve = async (bench: Bench, index = 0) => {
  const connection = await bench.coordinator.connection(index);
  await connection.welcome(Buffer.alloc(32, 1).toString("base64"));
  await connection.wait("attestation_response");
  connection.judge("online");
  await waitFor("serving", () => bench.link.state.phase === "serving");
  return connection;
};

describe("a quiet line", () => {
  test("is pinged, and heartbeats flow", async () => {
    const bench = await openBench();
    bench.link.start();
    const connection = await serve(bench);
    const beats = connection.of("heartbeat").length;
    for (let round = 0; round < 12; round += 1) {
      await bench.clock.advance(5_000);
      await connection.wait("heartbeat", beats + round);
    }
    expect(bench.link.state.phase).toBe("serving");
    expect(connection.of("heartbeat").map(({ seq }) => seq)).toEqual(
      connection.of("heartbeat").map((_, index) => index),
    );
    expect(bench.lost).toBe(0);
  });

  test("that carries nothing for 30 s is dropped", async () => {
    const proxies: { stall(): void }[] = [];
    const bench = await openBench({
      through: async (port) => {
        const proxy = await stallingProxy(port);
        proxies.push(proxy);
        return proxy.port;
      },
    });
    bench.link.start();
    await serve(bench);
    proxies[0]?.stall();
    await bench.clock.advance(29_000);
    expect(bench.link.state.phase).toBe("serving");
    await bench.clock.advance(15_000);
    expect(bench.states).toContain("backoff");
    expect(bench.lost).toBe(1);
    expect(bench.faults.map(({ code }) => code)).toContain("coordinator_unreachable");
  });

  test("after a sleep of the machine a new connection is made at once", async () => {
    let sleptMs = 0;
    const bench = await openBench({ clock: (clock) => ({ ...clock, nowMs: () => clock.nowMs() + sleptMs }) });
    bench.link.start();
    await serve(bench);
    sleptMs = 60_000;
    await bench.clock.advance(10_000);
    await bench.coordinator.connection(1);
    expect(bench.faults).toEqual([]);
    expect(bench.lost).toBe(1);
  });
});

describe("coming back", () => {
  test("waits longer each time, and resets after a good while", async () => {
    const bench = await openBench({ fraction: 0.999 });
    bench.coordinator.refusal = 503;
    bench.link.start();
    for (const waitMs of [1_000, 2_000, 4_000, 8_000]) {
      const { refusals } = bench.coordinator;
      await waitFor("backoff", () => bench.link.state.phase === "backoff");
      await bench.clock.advance(waitMs * 0.99);
      expect(bench.link.state.phase).toBe("backoff");
      await bench.clock.advance(waitMs * 0.01);
      await waitFor(
        "the next try",
        () => bench.coordinator.refusals > refusals || bench.link.state.phase === "backoff",
      );
    }
    expect(bench.faults.every(({ code }) => code === "coordinator_unreachable")).toBe(true);
  });

  test("brings the resume token within its time only", async () => {
    const bench = await openBench({ fraction: 0 });
    bench.link.start();
    const first = await serve(bench);
    first.close();
    await waitFor("backoff", () => bench.link.state.phase === "backoff");
    await bench.clock.advance(0);
    const second = await serve(bench, 1);
    expect(bench.resumeTokens[1]).toMatch(/^rt-/);
    bench.coordinator.refusal = 503;
    second.cut();
    await waitFor("backoff", () => bench.link.state.phase === "backoff");
    await bench.clock.advance(120_001);
    bench.coordinator.refusal = null;
    await waitFor("the third registration", async () => {
      await bench.clock.advance(0);
      return bench.resumeTokens.length === 3;
    });
    expect(bench.resumeTokens[2]).toBeNull();
  });

  test("a replaced connection steps aside and retries", async () => {
    const bench = await openBench({ fraction: 0 });
    bench.link.start();
    (await serve(bench)).close(1000);
    await waitFor("the loss", () => bench.lost === 1);
    await bench.clock.advance(1);
    await bench.coordinator.connection(1);
  });

  test("a rejection is told with its hint and retried slowly", async () => {
    const bench = await openBench({ fraction: 0 });
    bench.link.start();
    const connection = await bench.coordinator.connection();
    await connection.wait("register");
    connection.send({ type: "reject", code: "model_hash_mismatch", message: "no" });
    const fault = await waitFor("the fault", () => bench.faults[0]);
    expect(fault).toMatchObject({ code: "provider_rejected", reason: "model_hash_mismatch" });
    expect(fault.hint).toContain("darkbloom hash");
    await bench.clock.advance(14_999);
    expect(bench.coordinator.connections.length).toBe(1);
    await bench.clock.advance(1);
    await bench.coordinator.connection(1);
  });

  test("nobody listening is unreachable, and a stop ends it", async () => {
    const bench = await openBench();
    await bench.coordinator[Symbol.asyncDispose]();
    bench.link.start();
    const fault = await waitFor("the fault", () => bench.faults[0]);
    expect(fault.code).toBe("coordinator_unreachable");
    bench.link.stop();
    expect(bench.link.state.phase).toBe("closed");
    await bench.clock.advance(60_000);
    expect(bench.states.at(-1)).toBe("closed");
  });
});
