/** Keys, clocks and statements that the trust tests share. */
import type { Random } from "../../src/core/ids.ts";
import type { Statement } from "../../src/trust/statements.ts";
import { ProviderKeys } from "../../src/trust/seal.ts";
import { createFakeClock, type FakeClock } from "../support/fake-clock.ts";

export const ATTEMPT_ID = "01234567-89ab-4def-8123-456789abcdef";
export const OTHER_ID = "fedcba98-7654-4210-bedc-ba9876543210";
export const MODEL = "darkbloom-demo";
export const NONCE = Buffer.alloc(32, 1).toString("base64");
export const SHA_256 = "cd".repeat(32);

/** Bytes that differ from call to call and not from run to run. */
export const countingRandom = (): Pick<Random, "bytes"> => {
  let count = 0;
  return {
    bytes(length) {
      count += 1;
      return new Uint8Array(length).fill(count);
    },
  };
};

export const openProviderKeys = async (
  replayIdsMax?: number,
): Promise<{ readonly keys: ProviderKeys; readonly clock: FakeClock }> => {
  const clock = createFakeClock();
  const limit = replayIdsMax === undefined ? {} : { replayIdsMax };
  return { keys: await ProviderKeys.create({ clock, random: countingRandom(), ...limit }), clock };
};

export const statementOf = (identityKey: string, changes: Partial<Statement> = {}): Statement => ({
  nonce: NONCE,
  identity_key: identityKey,
  k_public: Buffer.alloc(32, 2).toString("base64"),
  hardware: {
    machine_model: "Virtual machine",
    chip_name: "x86-64",
    chip_family: "Unknown",
    chip_tier: "Unknown",
    memory_gb: 16,
    memory_available_gb: 8,
    cpu_cores: { total: 2, performance: 2, efficiency: 0 },
    gpu_cores: 0,
    memory_bandwidth_gbs: 0,
  },
  os: { platform: "linux", version: "6.8", arch: "x64" },
  posture: {
    sip_enabled: null,
    secure_boot_enabled: null,
    authenticated_root_enabled: null,
    core_dumps_disabled: true,
  },
  build_sha256: null,
  native_sha256: SHA_256,
  models: [{ id: MODEL, manifest_sha256: SHA_256 }],
  issued_at: "2026-06-22T12:00:00.000Z",
  ...changes,
});
