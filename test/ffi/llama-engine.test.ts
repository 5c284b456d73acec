/** The real engine keeps the engine contract, on the real library and the demo model. */
import { expect, test } from "bun:test";
import { chat, run } from "../support/collect.ts";
import { openDemoEngine } from "../support/demo-engine.ts";
import { memoryLog } from "../support/memory-log.ts";
import { rejectionOf } from "../support/rejection.ts";
import { engineContract } from "../engine/contract.ts";

engineContract("llama", openDemoEngine);

test("a bug met while a request is prepared ends that request alone", async () => {
  const log = memoryLog();
  await using engine = await openDemoEngine({ log: log.log });
  const other = run(engine, chat("Count to 30.", { sampling: { temperature: 0 } }));
  // No door lets such a seed pass: the sampler takes it for a bug of its caller.
  const broken = run(engine, chat("Count to 30.", { sampling: { seed: 0.5 } }));
  expect(await rejectionOf(broken)).toMatchObject({ code: "internal" });
  expect((await other).text).toContain("30");
  expect(log.has("request_broke")).toBe(true);
});
