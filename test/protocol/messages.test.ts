/** Control messages: what passes the door, what is folded or clamped on the way, and that a refusal quotes nothing. */
import { describe, expect, test } from "bun:test";
import { CONTROL_FRAME_BYTES_MAX } from "../../src/core/limits.ts";
import {
  decodeCoordinatorMessage,
  decodeProviderMessage,
  encodeMessage,
  type CoordinatorMessage,
  type ProviderMessage,
} from "../../src/protocol/messages.ts";
import { faultOf } from "../support/fault-of.ts";
import { COORDINATOR_SAMPLES, PROVIDER_SAMPLES } from "./_samples.ts";

const providerSample = (type: ProviderMessage["type"]): ProviderMessage =>
  PROVIDER_SAMPLES.find((sample) => sample.type === type)!;
const coordinatorSample = (type: CoordinatorMessage["type"]): CoordinatorMessage =>
  COORDINATOR_SAMPLES.find((sample) => sample.type === type)!;

const decodeProvider = (value: object): ProviderMessage => {
  const decoded = decodeProviderMessage(JSON.stringify(value));
  if (!decoded.ok) throw new Error(`unsupported ${decoded.unsupported}`);
  return decoded.message;
};

describe("every message", () => {
  test.each(PROVIDER_SAMPLES.map((sample) => [sample.type, sample] as const))(
    "%s survives the wire towards the coordinator",
    (_type, sample) => {
      expect(decodeProviderMessage(encodeMessage(sample))).toEqual({ ok: true, message: sample });
    },
  );
  test.each(COORDINATOR_SAMPLES.map((sample) => [sample.type, sample] as const))(
    "%s survives the wire towards the provider",
    (_type, sample) => {
      expect(decodeCoordinatorMessage(encodeMessage(sample))).toEqual({ ok: true, message: sample });
    },
  );

  test("loses keys this version does not know, at every depth", () => {
    const register = providerSample("register") as Extract<ProviderMessage, { type: "register" }>;
    const grown = { ...register, future: 1, hardware: { ...register.hardware, future: [2] } };
    expect(decodeProvider(grown)).toEqual(register);
  });

  test("of a type this version does not know is named, not refused", () => {
    expect(decodeProviderMessage('{"type":"models_update","models":[]}')).toEqual({
      ok: false,
      unsupported: "models_update",
    });
    expect(decodeCoordinatorMessage('{"type":"load_model"}')).toEqual({ ok: false, unsupported: "load_model" });
    // The other direction's messages are unknown, too.
    expect(decodeProviderMessage(encodeMessage(coordinatorSample("cancel")))).toEqual({
      ok: false,
      unsupported: "cancel",
    });
  });

  test("of a type that every object has is unknown, too", () => {
    expect(decodeProviderMessage('{"type":"constructor"}')).toEqual({ ok: false, unsupported: "constructor" });
  });

  test.each(["toString", "__proto__", "a b", "", "A", "x".repeat(65)])(
    "of type %p is malformed: no message could have this name",
    (type) => {
      const text = JSON.stringify({ ["type"]: type });
      expect(faultOf(() => decodeProviderMessage(text)).code).toBe("protocol_error");
    },
  );
});

describe("a refusal", () => {
  test.each([
    ["", "not JSON"],
    ["{", "not JSON"],
    ["[".repeat(900_000), "not JSON"],
    ["null", "not an object"],
    ["[]", "not an object"],
    ["{}", "no type"],
    ['{"type":7}', "no type"],
  ])("says what is wrong (case %#)", (text, what) => {
    const fault = faultOf(() => decodeProviderMessage(text));
    expect(fault.code).toBe("protocol_error");
    expect(fault.message).toBe(`malformed control message: ${what}`);
  });

  test("names the message and the field, and quotes neither values nor unknown keys", () => {
    const secret = "the prompt that must not leak";
    const fault = faultOf(() =>
      decodeProvider({ ...providerSample("inference_error"), status: secret, [secret]: secret }),
    );
    expect(fault.message).toBe("malformed control message: inference_error, field status");
    expect(fault.cause).toBeUndefined();
    expect(faultOf(() => decodeProviderMessage(`{"type":"register","version":"${secret}`)).message).not.toContain(
      "prompt",
    );
  });

  test("comes before parsing when the text is too large, counted in bytes", () => {
    const padded = (text: string): string => JSON.stringify({ type: "inference_accepted", padding: text });
    const ascii = padded("x".repeat(CONTROL_FRAME_BYTES_MAX));
    const wide = padded("漢".repeat(CONTROL_FRAME_BYTES_MAX / 2));
    expect(wide.length).toBeLessThan(CONTROL_FRAME_BYTES_MAX);
    for (const text of [ascii, wide])
      expect(faultOf(() => decodeProviderMessage(text)).message).toBe("malformed control message: too large");
  });
});

describe("numbers and words", () => {
  const register = providerSample("register") as Extract<ProviderMessage, { type: "register" }>;
  const heartbeat = providerSample("heartbeat") as Extract<ProviderMessage, { type: "heartbeat" }>;

  test("hardware is clamped as the original clamps it", () => {
    const hardware = { ...register.hardware, memory_gb: 9e9, memory_bandwidth_gbs: 1e300 };
    const decoded = decodeProvider({ ...register, hardware }) as typeof register;
    expect(decoded.hardware.memory_gb).toBe(1024);
    expect(decoded.hardware.memory_bandwidth_gbs).toBe(2000);
  });

  test("shares are clamped to 1; negative and infinite numbers are refused", () => {
    const withCpu = (cpu: unknown): object => ({
      ...heartbeat,
      system_metrics: { ...heartbeat.system_metrics, cpu_usage: cpu },
    });
    expect((decodeProvider(withCpu(17)) as typeof heartbeat).system_metrics.cpu_usage).toBe(1);
    for (const bad of [-0.1, null, "0.5", Number.NaN])
      expect(faultOf(() => decodeProvider(withCpu(bad))).message).toContain("system_metrics.cpu_usage");
    const infinite = encodeMessage(heartbeat).replace('"cpu_usage":0.9', '"cpu_usage":1e999');
    expect(faultOf(() => decodeProviderMessage(infinite)).code).toBe("protocol_error");
  });

  test("words outside a vocabulary fold to its fallback", () => {
    const slot = { ...heartbeat.backend_capacity.slots[0], state: "dreaming" };
    const backend_capacity = { ...heartbeat.backend_capacity, slots: [slot] };
    const decoded = decodeProvider({ ...heartbeat, backend_capacity }) as typeof heartbeat;
    expect(decoded.backend_capacity.slots[0]?.state).toBe("other");
    const chip = decodeProvider({ ...register, hardware: { ...register.hardware, chip_family: "M99" } });
    expect((chip as typeof register).hardware.chip_family).toBe("Unknown");
  });

  test("an unknown failure code is a generation failure, and a reason outside the vocabulary is dropped", () => {
    const sample = providerSample("inference_error");
    const decoded = decodeProvider({ ...sample, failure_code: "made_up", reason: "user said: hello" });
    expect(decoded).toMatchObject({ failure_code: "generation_failure" });
    expect((decoded as { reason?: string }).reason).toBeUndefined();
  });

  test("an unknown protocol version parses, so that it can be answered", () => {
    expect(decodeProvider({ ...register, protocol: 2 })).toMatchObject({ protocol: 2 });
  });

  test.each([
    ["manifest_sha256", "AB".repeat(32)],
    ["manifest_sha256", undefined],
    ["manifest_sha256", null],
    ["id", ""],
    ["id", "a\nb"],
    ["id", "x".repeat(201)],
    ["size_bytes", 1.5],
    ["size_bytes", 2 ** 60],
    ["context", 0],
  ])("a model with %s %p is refused", (key, value) => {
    const models = [{ ...register.models[0], [key]: value }];
    expect(faultOf(() => decodeProvider({ ...register, models })).message).toBe(
      `malformed control message: register, field models.0.${key}`,
    );
  });

  test("parts and bytes of a request must agree", () => {
    const request = coordinatorSample("inference_request");
    const decode = (value: object): unknown => decodeCoordinatorMessage(JSON.stringify(value));
    expect(faultOf(() => decode({ ...request, parts: 3 })).message).toContain("field parts");
    expect(faultOf(() => decode({ ...request, parts: 1 })).message).toContain("field parts");
    expect(faultOf(() => decode({ ...request, parts: 33, bytes: 33 * 2 ** 20 })).message).toContain("field bytes");
  });

  test("lists are bounded", () => {
    const models = Array.from({ length: 257 }, () => register.models[0]);
    expect(faultOf(() => decodeProvider({ ...register, models })).message).toContain("field models");
  });
});
