/**
 * What the network path costs: the local endpoint (D) and consumer → coordinator → sealed WebSocket → provider (E), in interleaved
 * rounds of the same streams; throughput and time to first token as paired ratios, and CPU time per relayed token of each process.
 *
 * Run: bun test/bench/path.ts [--rounds 10] [--tokens 128] [--model file.gguf]. Prints a Markdown table.
 */
import { readFileSync } from "node:fs";
import path from "node:path";
import { startDarkbloom, type DarkbloomProcess } from "../support/darkbloom-process.ts";
import { streamChat } from "../support/chat-stream.ts";
import { tempDir } from "../support/temp-dir.ts";

const flag = (name: string, fallback: string): string => {
  const at = process.argv.indexOf(`--${name}`);
  return at === -1 ? fallback : (process.argv[at + 1] ?? fallback);
};
const ROUNDS = Number(flag("rounds", "10"));
const TOKENS = Number(flag("tokens", "128"));
const MODEL = flag("model", path.join(import.meta.dir, "../../assets/demo-model/darkbloom-demo-q8_0.gguf"));
const BATCHES = [1, 4, 8, 16];
const CPU_HERE = 1;
const TICKS_PER_SEC = 100;

interface Rung {
  readonly name: "D" | "E";
  readonly baseUrl: string;
  readonly key: string;
}

/** CPU time of a process and its children so far, in microseconds. Linux counts in ticks of 10 ms. */
const cpuUs = (pids: readonly number[]): number =>
  pids.reduce((sum, pid) => {
    const fields = readFileSync(`/proc/${pid}/stat`, "utf8")
      .replace(/^.*\) /, "")
      .split(" ");
    return sum + ((Number(fields[11]) + Number(fields[12])) / TICKS_PER_SEC) * 1e6;
  }, 0);

const childrenOf = (pid: number): number[] =>
  readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").trim().split(" ").filter(Boolean).map(Number);

const withChildren = (started: DarkbloomProcess): number[] => [started.pid, ...childrenOf(started.pid)];

interface Measurement {
  readonly tps: number;
  readonly ttftMs: number;
  readonly tokens: number;
}

const quantile = (values: readonly number[], q: number): number => {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))] ?? Number.NaN;
};
const spread = (values: readonly number[], digits: number): string =>
  `${quantile(values, 0.5).toFixed(digits)} (${quantile(values, 0.25).toFixed(digits)}–${quantile(values, 0.75).toFixed(digits)})`;

const measure = async (rung: Rung, streams: number): Promise<Measurement> => {
  const startedMs = performance.now();
  const results = await Promise.all(
    Array.from({ length: streams }, (_, index) =>
      streamChat({
        ...rung,
        body: {
          model: "bench",
          messages: [{ role: "user", content: `Tell me a story about a fox. ${index}` }],
          max_tokens: TOKENS,
          temperature: 0,
          ignore_eos: true,
        },
      }),
    ),
  );
  const tookMs = performance.now() - startedMs;
  const tokens = results.reduce((sum, result) => sum + result.completionTokens, 0);
  if (tokens !== streams * TOKENS) throw new Error(`${rung.name} delivered ${tokens} of ${streams * TOKENS} tokens`);
  return {
    tps: (tokens / tookMs) * 1000,
    ttftMs: quantile(
      results.map((result) => result.ttftMs),
      0.5,
    ),
    tokens,
  };
};

await using home = await tempDir();
const common = ["--model", MODEL, "--id", "bench", "--parallel", "16", "--ctx", "512", "--threads", "1", "--json"];
await using local = startDarkbloom(["start", "--local", "--port", "0", "--data-dir", `${home.path}/d`, ...common]);
await using coordinator = startDarkbloom(
  ["serve-coordinator", "--port", "0", "--data-dir", `${home.path}/c`, "--json"],
  { cpus: String(CPU_HERE) },
);
const { url, provider_url: providerUrl } = (await coordinator.event("listening")) as Record<string, string>;
const admin = async (...args: string[]): Promise<Record<string, string>> => {
  const run = startDarkbloom([...args, "--data-dir", `${home.path}/c`, "--json"]);
  await run.exited;
  return run.lines[0] as Record<string, string>;
};
const { key } = await admin("keys", "create", "--name", "bench");
const { token } = await admin("join-token", "create");
await using provider = startDarkbloom(
  ["start", "--coordinator-url", providerUrl ?? "", "--join", token ?? "", "--data-dir", `${home.path}/p`].concat(
    common,
  ),
);
const listening = (await local.event("listening")) as Record<string, string>;
await Promise.all([local.event("serving"), provider.event("serving")]);

const rungs: readonly Rung[] = [
  { name: "D", baseUrl: listening["url"] ?? "", key: listening["api_key"] ?? "" },
  { name: "E", baseUrl: url ?? "", key: key ?? "" },
];
for (const rung of rungs) for (const streams of BATCHES) await measure(rung, streams); // warm-up

const samples = new Map<string, Measurement[]>();
const cpu = { coordinator: 0, provider: 0, tokens: 0 };
for (let round = 0; round < ROUNDS; round += 1)
  for (const streams of BATCHES)
    for (const rung of round % 2 === 0 ? rungs : rungs.toReversed()) {
      const before = [cpuUs([coordinator.pid]), cpuUs(withChildren(provider))] as const;
      const result = await measure(rung, streams);
      samples.set(`${rung.name}${streams}`, [...(samples.get(`${rung.name}${streams}`) ?? []), result]);
      if (rung.name === "E") {
        cpu.coordinator += cpuUs([coordinator.pid]) - before[0];
        cpu.provider += cpuUs(withChildren(provider)) - before[1];
        cpu.tokens += result.tokens;
      }
    }

const out = [`| streams | D tok/s | E tok/s | E/D | TTFT(D) ms | TTFT(E) − TTFT(D) ms |`, `|---|---|---|---|---|---|`];
for (const streams of BATCHES) {
  const d = samples.get(`D${streams}`) ?? [];
  const e = samples.get(`E${streams}`) ?? [];
  const ratios = e.map((sample, round) => sample.tps / (d[round]?.tps ?? Number.NaN));
  const extra = e.map((sample, round) => sample.ttftMs - (d[round]?.ttftMs ?? Number.NaN));
  out.push(
    `| ${streams} | ${spread(
      d.map((s) => s.tps),
      0,
    )} | ${spread(
      e.map((s) => s.tps),
      0,
    )} | ${spread(ratios, 3)} | ${spread(
      d.map((s) => s.ttftMs),
      2,
    )} | ${spread(extra, 2)} |`,
  );
}
out.push(
  "",
  `${ROUNDS} interleaved rounds, ${TOKENS} tokens per stream, median (quartiles), 1 engine thread.`,
  `CPU per relayed token: coordinator ${(cpu.coordinator / cpu.tokens).toFixed(1)} µs, provider ${(cpu.provider / cpu.tokens).toFixed(1)} µs (engine included); ${cpu.tokens} tokens.`,
);
process.stdout.write(`${out.join("\n")}\n`);
