/** Which weights a model id stands for, in SQLite. */
import type { Database } from "bun:sqlite";
import { assert } from "../../core/fault.ts";
import { guard } from "./guard.ts";
import type { ModelPin, ModelPinStore } from "./store.ts";

interface ModelPinRow {
  model_id: string;
  manifest_sha256: string;
  provider_id: string;
  pinned_at_ms: number;
}

const toPin = (row: ModelPinRow): ModelPin => ({
  modelId: row.model_id,
  manifestSha256: row.manifest_sha256,
  providerId: row.provider_id,
  pinnedAtMs: row.pinned_at_ms,
});

export const createModelPinStore = (database: Database): ModelPinStore => {
  // One statement decides, so that two coordinator processes can never pin two hashes.
  const insert = database.query(
    `INSERT INTO model_pins (model_id, manifest_sha256, provider_id, pinned_at_ms) VALUES (?, ?, ?, ?)
     ON CONFLICT (model_id) DO NOTHING`,
  );
  const find = database.query<ModelPinRow, [string]>(
    "SELECT model_id, manifest_sha256, provider_id, pinned_at_ms FROM model_pins WHERE model_id = ?",
  );
  const findPin = (modelId: string): ModelPin | null => {
    const row = find.get(modelId);
    return row === null ? null : toPin(row);
  };
  return {
    pin: (candidate) =>
      guard("model pin", () => {
        const known = findPin(candidate.modelId);
        if (known !== null) return known;
        insert.run(candidate.modelId, candidate.manifestSha256, candidate.providerId, candidate.pinnedAtMs);
        const pin = findPin(candidate.modelId);
        assert(pin !== null, "a pin that was just written can be read");
        return pin;
      }),
    find: (modelId) => guard("model pin lookup", () => findPin(modelId)),
  };
};
