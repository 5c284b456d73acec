/** Which of a provider's models may be routed to: those its token allows, with the weights that their id stands for. */
import type { TrustReason } from "../../core/trust.ts";
import type { RegisteredModel } from "../routing/connected-provider.ts";
import type { ModelPinStore } from "../store/store.ts";

export interface RefusedModel {
  readonly id: string;
  readonly reason: TrustReason;
  readonly seen: string;
  readonly expected: string;
}

export interface AdmittedModels {
  readonly models: ReadonlyMap<string, RegisteredModel>;
  readonly refused: readonly RefusedModel[];
}

export interface AdmitModelsDeps {
  readonly store: { readonly modelPins: ModelPinStore };
}

export interface AdmitModelsInput {
  readonly providerId: string;
  readonly models: readonly RegisteredModel[];
  /** Ids the join token allows; null = any. */
  readonly allowed: readonly string[] | null;
  /** Unix time. */
  readonly nowMs: number;
}

const CHARS_MAX = 200;

/** Catalog policy `open`: the first verified provider of an id pins its hash, and any other hash under that id is refused. */
export const admitModels = (deps: AdmitModelsDeps, input: AdmitModelsInput): AdmittedModels => {
  const models = new Map<string, RegisteredModel>();
  const refused: RefusedModel[] = [];
  for (const model of input.models) {
    if (input.allowed !== null && !input.allowed.includes(model.id)) {
      const expected = input.allowed.join(", ").slice(0, CHARS_MAX);
      refused.push({ id: model.id, reason: "model_not_allowed", seen: model.id, expected });
      continue;
    }
    const { manifestSha256: expected } = deps.store.modelPins.pin({
      modelId: model.id,
      manifestSha256: model.manifest_sha256,
      providerId: input.providerId,
      pinnedAtMs: input.nowMs,
    });
    if (expected === model.manifest_sha256) models.set(model.id, model);
    else refused.push({ id: model.id, reason: "model_hash_mismatch", seen: model.manifest_sha256, expected });
  }
  return { models, refused };
};
