/**
 * What relaying one token costs the coordinator: it runs in its own process, a scripted provider and the consumers in this one, and
 * the coordinator's CPU time is read from the kernel. One token per data frame, which is the dearest case.
 *
 * Run: bun test/bench/relay.ts [--rounds 3] [--streams 16] [--tokens 4000] [--pace-ms 0]
 * With a pace each stream gets one token per so many milliseconds, as from a real model: nothing is saturated and nothing merges.
 */
import { readFileSync } from "node:fs";
import { startHarness } from "../coordinator/harness.ts";
import { ScriptedProvider } from "../support/scripted-provider.ts";

const flag = (name: string, fallback: number): number => {
  const at = process.argv.indexOf(`--${name}`);
  return at === -1 ? fallback : Number(process.argv[at + 1] ?? fallback);
};

const TICK_US = 10_000;

/** User and system time. */
const cpuUs = (pid: number): readonly [number, number] => {
  const fields = readFileSync(`/proc/${pid}/stat`, "utf8")
    .replace(/^.*\) /, "")
    .split(" ");
  return [Number(fields[11]) * TICK_US, Number(fields[12]) * TICK_US];
};

/** The child: a coordinator and nothing else. */
const serve = async (): Promise<void> => {
  await using harness = await startHarness();
  const { url, providerUrl } = harness.coordinator;
  process.stdout.write(`${JSON.stringify({ url, providerUrl, key: harness.key, token: harness.token })}\n`);
  for await (const _line of console) return;
};

const bench = async (): Promise<void> => {
  const [rounds, streams, tokens, paceMs] = [
    flag("rounds", 3),
    flag("streams", 16),
    flag("tokens", 4_000),
    flag("pace-ms", 0),
  ];
  const child = Bun.spawn([process.execPath, import.meta.path, "--serve"], { stdin: "pipe", stdout: "pipe" });
  const reader = child.stdout.getReader();
  const line = new TextDecoder().decode((await reader.read()).value);
  const { url, providerUrl, key, token } = JSON.parse(line) as Record<"url" | "providerUrl" | "key" | "token", string>;
  await using _provider = await ScriptedProvider.start({
    url: providerUrl,
    token,
    concurrency: streams,
    onRequest: async (job) => {
      job.accept();
      for (let index = 0; index < tokens; index += 1) {
        job.text("token ");
        if (paceMs > 0) await Bun.sleep(paceMs);
        else if (index % 4 === 3) await new Promise((resolve) => setImmediate(resolve));
      }
      job.finish();
    },
  });
  const body = JSON.stringify({ model: "test-model", stream: true, messages: [{ role: "user", content: "Hi" }] });
  const ask = async (): Promise<number> => {
    const response = await fetch(`${url}/v1/chat/completions`, {
      method: "POST",
      headers: { authorization: `Bearer ${key}` },
      body,
    });
    return (await response.text()).split("token ").length - 1;
  };
  console.log("| round | tokens | coordinator CPU µs/token | of it system | tokens/s |\n|---|---|---|---|---|");
  for (let round = 0; round <= rounds; round += 1) {
    const [beforeUs, startedMs] = [cpuUs(child.pid), performance.now()];
    const relayed = (await Promise.all(Array.from({ length: streams }, ask))).reduce((sum, count) => sum + count, 0);
    const tookSec = (performance.now() - startedMs) / 1000;
    if (relayed !== streams * tokens) throw new Error(`${relayed} of ${streams * tokens} tokens arrived`);
    const [user, system] = cpuUs(child.pid).map((us, index) => (us - (beforeUs[index] ?? 0)) / relayed) as [
      number,
      number,
    ];
    console.log(
      `| ${round === 0 ? "warm-up" : round} | ${relayed} | ${(user + system).toFixed(1)} | ${system.toFixed(1)} | ${(relayed / tookSec).toFixed(0)} |`,
    );
  }
  await child.stdin.end();
  await child.exited;
};

await (process.argv.includes("--serve") ? serve() : bench());
