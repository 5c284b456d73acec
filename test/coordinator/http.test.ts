/** The HTTP surface: routes, order of checks, caps, envelopes, health, drain, binds. */
import { describe, expect, test } from "bun:test";
import { chatOpenApi } from "../../src/dialects/openapi.ts";
import { COORDINATOR_DEFAULTS } from "../support/coordinator-defaults.ts";
import { startCoordinator } from "../../src/coordinator/coordinator.ts";
import { clientIp } from "../../src/coordinator/http/client-ip.ts";
import { readOpenApi } from "../../src/coordinator/http/openapi.ts";
import { matchRoute, ROUTES } from "../../src/coordinator/http/routes.ts";
import { openStore } from "../../src/coordinator/store/open-store.ts";
import { systemClock } from "../../src/core/clock.ts";
import { Fault } from "../../src/core/fault.ts";
import { createIds, systemRandom } from "../../src/core/ids.ts";
import { createLog } from "../../src/core/log.ts";
import { TEST_TLS_CERT, TEST_TLS_KEY } from "../fixtures/tls.ts";
import { residentBytes } from "../support/fuzz.ts";
import { faultOf } from "../support/fault-of.ts";
import { scriptedModel, scriptedSigner } from "../support/scripted-provider.ts";
import { tempDir } from "../support/temp-dir.ts";
import { waitFor } from "../support/wait.ts";
import { CHAT, errorOf, readSse, startHarness, waitForLine } from "./harness.ts";

describe("routes", () => {
  test("every route has an access, and an operation in the OpenAPI document, and the document has no other", () => {
    const documented = Object.entries(chatOpenApi("1").paths).flatMap(([path, operations]) =>
      Object.keys(operations).map((method) => `${method.toUpperCase()} ${path}`),
    );
    expect(ROUTES.map(({ method, path }) => `${method} ${path}`).toSorted()).toEqual(documented.toSorted());
    const secured = new Map(
      Object.entries(chatOpenApi("1").paths).map(([path, item]) => [path, JSON.stringify(item).includes('"security"')]),
    );
    for (const { path, access } of ROUTES) {
      expect(["public", "key", "provider"]).toContain(access);
      expect({ path, secured: secured.get(path) }).toEqual({ path, secured: access !== "public" });
    }
  });

  test("paths and methods match, ids may hold slashes", () => {
    expect(matchRoute("GET", "/v1/models/org%2Fname").param).toBe("org/name");
    expect(matchRoute("GET", "/v1/models/org/name").param).toBe("org/name");
    expect(matchRoute("HEAD", "/health").route.path).toBe("/health");
    expect(faultOf(() => matchRoute("POST", "/v1/embeddings"))).toMatchObject({
      code: "endpoint_unknown",
      message: "endpoint POST /v1/embeddings is not implemented",
    });
    expect(faultOf(() => matchRoute("DELETE", "/v1/models")).code).toBe("method_not_allowed");
    for (const path of ["/", "/nothing", "/v1models", "/v1/models/", "/v1/models/%ff"])
      expect(faultOf(() => matchRoute("GET", path)).status).toBe(404);
  });

  test("the caller's address is the first that no trusted proxy wrote", () => {
    expect(clientIp("9.9.9.9", "1.1.1.1", [])).toBe("9.9.9.9");
    expect(clientIp("::ffff:10.0.0.1", "1.1.1.1, 2.2.2.2", ["10.0.0.1"])).toBe("2.2.2.2");
    expect(clientIp("10.0.0.1", "1.1.1.1, 10.0.0.2", ["10.0.0.1", "10.0.0.2"])).toBe("1.1.1.1");
    expect(clientIp("10.0.0.1", "rubbish", ["10.0.0.1"])).toBe("10.0.0.1");
    expect(clientIp("10.0.0.1", null, ["10.0.0.1"])).toBe("10.0.0.1");
  });
});

describe("http", () => {
  test("checks in order: credentials, body, model, messages, n, catalog, providers", async () => {
    await using harness = await startHarness();
    const post = (body: unknown, key: string | null = harness.key): Promise<Response> =>
      fetch(`${harness.coordinator.url}/v1/chat/completions`, {
        method: "POST",
        headers: key === null ? {} : { authorization: `Bearer ${key}` },
        body: typeof body === "string" ? body : JSON.stringify(body),
      });
    const cases: [unknown, string | null | undefined, number, Record<string, unknown>][] = [
      [
        "{",
        null,
        401,
        { type: "authentication_error", message: "missing credentials — use Authorization: Bearer <token>" },
      ],
      ["{", "sk-db-wrong", 401, { type: "authentication_error", param: null }],
      ["{", undefined, 400, { type: "invalid_request_error" }],
      [{ n: 2 }, undefined, 400, { message: "model is required", param: "model" }],
      [{ model: "m", n: 2 }, undefined, 400, { param: "messages" }],
      [{ ...CHAT, n: 2 }, undefined, 400, { message: "n > 1 is not supported", param: "n" }],
      [CHAT, undefined, 404, { type: "model_not_found", param: "model" }],
    ];
    for (const [body, key, status, expected] of cases) {
      const response = await post(body, key === undefined ? harness.key : key);
      expect(response.status).toBe(status);
      expect(Object.keys((await response.clone().json()) as object)).toEqual(["error"]);
      const error = await errorOf(response);
      expect(Object.keys(error).toSorted()).toEqual(["code", "message", "param", "type"]);
      expect(error).toMatchObject(expected);
    }
    const provider = await harness.provider();
    provider.terminate();
    await waitForLine(harness, "provider_disconnected");
    const response = await post(CHAT);
    expect(response.status).toBe(503);
    expect(response.headers.get("retry-after")).toBe("2");
    expect(await errorOf(response)).toMatchObject({ type: "model_unavailable", param: "model" });
  });

  test("lists models that are served now, with a key", async () => {
    await using harness = await startHarness();
    await harness.provider({ models: [scriptedModel("b"), scriptedModel("org/a", { context: 100 })] });
    const list = await harness.get("/v1/models");
    expect(await list.json()).toMatchObject({
      object: "list",
      data: [
        { id: "b", object: "model" },
        { id: "org/a", context_length: 100 },
      ],
    });
    expect(await (await harness.get("/v1/models/org/a")).json()).toMatchObject({ id: "org/a", object: "model" });
    const unknown = await harness.get("/v1/models/c");
    expect(unknown.status).toBe(404);
    expect(await errorOf(unknown)).toMatchObject({ type: "model_not_found" });
    expect((await harness.get("/v1/models", { headers: {} })).status).toBe(401);
  });

  test("health, readiness and the API document are public", async () => {
    await using harness = await startHarness();
    await harness.provider();
    const open = { headers: {} };
    const health = await harness.get("/health", open);
    expect(await health.json()).toEqual({ status: "ok", draining: false, providers: 1, version: "0.0.0-test" });
    const ready = await harness.get("/readyz", open);
    expect(ready.status).toBe(200);
    expect(await ready.json()).toEqual({ ready: true, draining: false, inflight: 0, health_reason: null });
    expect(await (await harness.get("/openapi.json", open)).json()).toMatchObject({ openapi: "3.1.0" });
    expect(harness.coordinator.health()).toMatchObject({ ready: true, providers: 1 });
    harness.store.close();
    const broken = await harness.get("/readyz", open);
    expect(broken.status).toBe(503);
    expect(await broken.json()).toMatchObject({ ready: false, health_reason: "store_failed" });
    expect((await harness.get("/health", open)).status).toBe(200);
  });

  test("the API document is made once, since anybody may ask for it", () => {
    const first = readOpenApi({ version: "1" });
    expect(first).toEqual({ type: "json", status: 200, value: chatOpenApi("1") });
    expect((readOpenApi({ version: "1" }) as { value?: unknown }).value).toBe((first as { value?: unknown }).value);
    expect(readOpenApi({ version: "2" })).not.toEqual(first);
  });

  test("unknown endpoints, wrong methods and OPTIONS", async () => {
    await using harness = await startHarness({ corsOrigin: "https://console.example" });
    const unknown = await harness.get("/v1/audio?secret=1");
    expect(unknown.status).toBe(404);
    expect(await errorOf(unknown)).toEqual({
      type: "invalid_request_error",
      message: "endpoint GET /v1/audio is not implemented",
      code: "invalid_request_error",
      param: null,
    });
    expect((await harness.get("/v1/chat/completions")).status).toBe(405);
    const options = await harness.get("/v1/chat/completions", { method: "OPTIONS", headers: {} });
    expect(options.status).toBe(204);
    expect(options.headers.get("access-control-allow-origin")).toBe("https://console.example");
    expect(options.headers.get("access-control-allow-methods")).toContain("PATCH");
    // The official SDK adds headers of its own in a browser; a star covers all but Authorization.
    expect(options.headers.get("access-control-allow-headers")).toBe("Content-Type, Authorization, X-Request-ID, *");
    expect((await harness.get("/health", { method: "HEAD" })).status).toBe(200);
    expect(harness.lines.join("")).not.toContain("secret=1");
  });

  test("no CORS headers unless an origin is set", async () => {
    await using harness = await startHarness();
    const response = await harness.get("/health", { headers: { origin: "https://evil.example" } });
    expect(response.headers.get("access-control-allow-origin")).toBeNull();
  });

  test("a 20 MB body is refused in bounded memory, announced or not", async () => {
    await using harness = await startHarness();
    await harness.provider();
    const big = `{"model":"test-model","messages":[{"role":"user","content":"${"x".repeat(20_000_000)}"}]}`;
    const announced = await harness.chat({}, { body: big });
    expect(announced.status).toBe(413);
    expect(await errorOf(announced)).toMatchObject({ type: "invalid_request_error" });
    const before = residentBytes();
    for (let round = 0; round < 5; round += 1) {
      let sent = 0;
      const body = new ReadableStream<Uint8Array>({
        pull(controller) {
          controller.enqueue(new Uint8Array(256 * 1024).fill(120));
          sent += 1;
          if (sent >= 80) controller.close();
        },
      });
      // The server may answer and hang up while we still write: either is a refusal.
      const refused = await harness.chat({}, { body }).then(
        async (response) => ({ status: response.status, message: (await errorOf(response)).message }),
        () => null,
      );
      if (refused !== null) expect(refused).toMatchObject({ status: 413 });
      if (refused !== null) expect(refused.message).toContain("16777216-byte limit");
    }
    expect(residentBytes() - before).toBeLessThan(120_000_000);
    expect((await harness.chat()).status).toBe(200);
  });

  test("a body that never arrives is given up", async () => {
    await using harness = await startHarness({ bodyMs: 50 });
    const socket = await Bun.connect({
      hostname: "127.0.0.1",
      port: Number(new URL(harness.coordinator.url).port),
      socket: { data: (_socket, data) => void received.push(data.toString()) },
    });
    const received: string[] = [];
    socket.write(
      `POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${harness.key}\r\nContent-Length: 100\r\n\r\n{`,
    );
    await waitFor("the refusal", () => received.join("").includes("408"));
    expect(chatOpenApi("1").paths["/v1/chat/completions"].post.responses).toHaveProperty("408");
    socket.end();
    expect(harness.coordinator.health().inflight).toBe(0);
  });

  test("draining: no new work, running streams finish, then everything is closed", async () => {
    await using harness = await startHarness();
    const provider = await harness.provider({
      onRequest: (job) => {
        job.accept();
        job.text("one ");
      },
    });
    const running = await harness.chat({ stream: true });
    const drained = harness.coordinator.drain(10_000);
    const refused = await harness.chat();
    expect(refused.status).toBe(429);
    expect(refused.headers.get("retry-after")).toBe("3");
    expect(await errorOf(refused)).toMatchObject({ type: "rate_limit_exceeded" });
    expect(await (await harness.get("/health")).json()).toMatchObject({ status: "ok", draining: true });
    const ready = await harness.get("/readyz");
    expect(ready.status).toBe(503);
    expect(await ready.json()).toEqual({ ready: false, draining: true, inflight: 1, health_reason: "draining" });
    provider.jobs[0]?.text("two");
    provider.jobs[0]?.finish();
    expect((await readSse(running)).data.at(-1)).toBe("[DONE]");
    await drained;
    await waitFor("the provider to be disconnected", () => provider.closed !== null);
    expect(await harness.get("/health").catch(() => "refused")).toBe("refused");
    expect(faultOf(() => harness.store.keys.list()).code).toBe("store_failed");
  });

  test("draining: an answer made at the last moment still reaches its consumer", async () => {
    await using harness = await startHarness();
    const provider = await harness.provider({ onRequest: (job) => job.accept() });
    const answered = harness.chat().then((response) => response.text());
    const job = await waitFor("the job", () => provider.jobs[0]);
    const drained = harness.coordinator.drain(10_000);
    job.text("x".repeat(500_000));
    job.finish();
    expect(await answered).toContain("x".repeat(500_000));
    await drained;
  });

  test("draining ends at the window even if a stream does not", async () => {
    await using harness = await startHarness();
    await harness.provider({ onRequest: (job) => job.text("one ") });
    const running = await harness.chat({ stream: true });
    await harness.coordinator.drain(30);
    const text = await running.text().catch(() => "cut");
    expect(text).not.toContain("[DONE]");
  });
});

describe("binds", () => {
  const start = async (options: Partial<typeof COORDINATOR_DEFAULTS>): Promise<Fault> => {
    await using dir = await tempDir();
    const clock = systemClock();
    const random = systemRandom();
    const log = createLog({ clock, level: "error", format: "json", write: () => undefined });
    using store = openStore({ clock }, `${dir.path}/coordinator.db`);
    const deps = { clock, random, ids: createIds(random), log, store, signer: await scriptedSigner(), version: "1" };
    try {
      const coordinator = await startCoordinator(deps, { ...COORDINATOR_DEFAULTS, port: 0, ...options });
      await coordinator.stop();
    } catch (thrown) {
      if (thrown instanceof Fault) return thrown;
      throw thrown;
    }
    throw new Error("it started");
  };

  test("an address beyond loopback needs TLS or --insecure-lan", async () => {
    const fault = await start({ host: "0.0.0.0" });
    expect(fault.code).toBe("config_invalid");
    expect(fault.hint).toContain("--insecure-lan");
    await using harness = await startHarness({ host: "0.0.0.0", insecureLan: true });
    // An address that can be dialled, from here and from the machines that get the join line.
    expect(new URL(harness.coordinator.url).hostname).not.toBe("0.0.0.0");
    expect((await fetch(`${harness.coordinator.url}/health`)).status).toBe(200);
  });

  test("a public URL that is none and an origin that no header takes are refused", async () => {
    for (const options of [{ publicUrl: "coordinator.example" }, { corsOrigin: "https://a.example\nX: y" }])
      expect((await start(options)).code).toBe("config_invalid");
  });

  test("a certificate needs its key, and both must be usable", async () => {
    expect((await start({ tlsCert: "x" })).code).toBe("config_invalid");
    expect((await start({ tlsCert: "x", tlsKey: "y" })).code).toBe("config_invalid");
  });

  test("with TLS consumers and providers are served over it, and plain HTTP is not", async () => {
    await using harness = await startHarness({ tlsCert: TEST_TLS_CERT, tlsKey: TEST_TLS_KEY });
    const { url, providerUrl } = harness.coordinator;
    expect(url).toStartWith("https://");
    expect(providerUrl).toStartWith("wss://");
    const provider = await harness.provider({ ca: TEST_TLS_CERT });
    expect(provider.trust?.status).toBe("online");
    const response = await harness.chat(
      {},
      {
        headers: { authorization: `Bearer ${harness.key}` },
        tls: { ca: TEST_TLS_CERT },
      },
    );
    expect(response.status).toBe(200);
    const plain = fetch(`${url.replace("https", "http")}/health`).then(({ status }) => status);
    expect(await plain.catch(() => "refused")).not.toBe(200);
  });

  test("a port in use is a clear fault", async () => {
    await using harness = await startHarness();
    const fault = await start({ port: Number(new URL(harness.coordinator.url).port) });
    expect(fault.code).toBe("address_in_use");
    expect(fault.hint).toContain("--port");
  });

  test("an address this machine does not have is a clear fault", async () => {
    expect((await start({ host: "192.0.2.1", insecureLan: true })).code).toBe("config_invalid");
  });
});
