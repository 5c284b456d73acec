/** Chat through real sockets: the plain road, streaming and whole. */
import { describe, expect, test } from "bun:test";
import { contentOf, readSse, startHarness, waitForLine } from "./harness.ts";

describe("chat", () => {
  test("streams an answer from a provider, sealed on the way, and names who served it", async () => {
    await using harness = await startHarness();
    const provider = await harness.provider();
    expect(provider.trust).toMatchObject({ status: "online", trust_level: "self_signed", reason: "verified" });
    const response = await harness.chat({ stream: true, stream_options: { include_usage: true } });
    expect(response.status).toBe(200);
    expect(response.headers.get("content-type")).toStartWith("text/event-stream");
    expect(response.headers.get("x-provider-id")).toMatch(/^prov_[0-9a-f]{24}$/);
    expect(response.headers.get("x-provider-encrypted")).toBe("true");
    expect(response.headers.get("x-provider-attested")).toBe("true");
    expect(response.headers.get("x-provider-trust-level")).toBe("self_signed");
    expect(response.headers.get("x-provider-chip")).toBe("Test chip");
    expect(response.headers.get("x-provider-model")).toBe("Test1,1");
    expect(response.headers.get("x-request-id")).toMatch(/^[0-9a-v]{12}$/);
    const timing = JSON.parse(response.headers.get("x-timing") ?? "{}") as Record<string, number>;
    expect(Object.keys(timing)).toEqual([
      "parse_us",
      "route_us",
      "queue_us",
      "encrypt_us",
      "dispatch_us",
      "provider_us",
    ]);
    for (const value of Object.values(timing)) expect(Number.isSafeInteger(value) && value >= 0).toBe(true);
    const { data } = await readSse(response);
    expect(contentOf(data)).toBe("Hello world");
    expect(data.at(-1)).toBe("[DONE]");
    expect(data[0]).toMatchObject({
      id: `chatcmpl-${response.headers.get("x-inference-job-id")}`,
      model: "test-model",
    });
    expect(data.at(-2)).toMatchObject({ choices: [], usage: { prompt_tokens: 5, completion_tokens: 2 } });
    expect(provider.jobs[0]?.request.messages).toEqual([{ role: "user", content: "Hi" }]);
    expect(provider.jobs[0]?.announcement).toMatchObject({ max_tokens: 8192, priority: "interactive" });
    expect(provider.errors).toEqual([]);
  });

  test("answers whole when no stream is asked for, and echoes the caller's request id", async () => {
    await using harness = await startHarness();
    await harness.provider();
    const response = await harness.chat(
      {},
      {
        headers: { authorization: `Bearer ${harness.key}`, "x-request-id": "my-own-id" },
      },
    );
    expect(response.status).toBe(200);
    expect(response.headers.get("x-request-id")).toBe("my-own-id");
    expect(response.headers.get("x-inference-job-id")).not.toBe("my-own-id");
    expect(await response.json()).toMatchObject({
      object: "chat.completion",
      model: "test-model",
      choices: [
        { index: 0, finish_reason: "stop", logprobs: null, message: { content: "Hello world", refusal: null } },
      ],
      usage: { prompt_tokens: 5, completion_tokens: 2, total_tokens: 7 },
    });
  });

  test("neither prompt nor completion is logged or stored, in success, failure and refusal", async () => {
    await using harness = await startHarness();
    const canary = "xyzzy-canary-7321";
    const messages = [{ role: "user", content: canary }];
    const provider = await harness.provider();
    provider.onRequest = (job) => {
      job.text(`${canary} answered`);
      job.finish();
    };
    expect(await (await harness.chat({ messages })).text()).toContain(canary);
    provider.onRequest = (job) => {
      job.text(canary);
      job.events([{ type: "text", text: canary.repeat(3) }]);
      job.fail({ failure_code: "generation_failure", status: 500 });
    };
    expect(await (await harness.chat({ messages, stream: true })).text()).toContain("provider_error");
    for (const wrong of [{ messages, n: 2 }, { messages, temperature: canary }, { messages: canary }])
      expect(await (await harness.chat(wrong)).text()).not.toContain(canary);
    provider.sendText(`{"type":"heartbeat","seq":"${canary}"}`);
    await waitForLine(harness, "provider_disconnected");
    expect(harness.lines.length).toBeGreaterThan(8);
    expect(harness.lines.join("\n")).not.toContain(canary);
    for (const file of ["coordinator.db", "coordinator.db-wal"])
      expect(await Bun.file(`${harness.dataDir}/${file}`).text()).not.toContain(canary);
  });
});
