/** `GET /v1/models` and `/v1/models/{id}`: what can be asked for now. */
import { Fault } from "../../core/fault.ts";
import { renderModel, renderModelList, type ModelEntry } from "../../dialects/models.ts";
import { pickContext } from "../routing/dispatch.ts";
import type { ServedModel } from "../routing/registry.ts";
import { toUnservedFault } from "../routing/retry.ts";
import { json, type Call, type HttpDeps, type Reply } from "./route.ts";

const servedModels = (deps: HttpDeps): readonly ServedModel[] =>
  deps.dispatch.registry.served(pickContext(deps.dispatch));

const toEntry = (deps: HttpDeps, model: ServedModel): ModelEntry => ({
  id: model.id,
  createdSec: Math.floor((deps.store.modelPins.find(model.id)?.pinnedAtMs ?? deps.clock.nowMs()) / 1000),
  contextTokens: model.contextTokens,
});

/** Throws `model_not_found` for an id this network has never seen. */
export const requireKnownModel = (deps: Pick<HttpDeps, "store">, model: string): void => {
  if (deps.store.modelPins.find(model) === null)
    throw new Fault("model_not_found", `model "${model}" is not available — see /v1/models for supported models`, {
      param: "model",
    });
};

export const listModels = (deps: HttpDeps): Reply =>
  json(renderModelList(servedModels(deps).map((model) => toEntry(deps, model))));

export const retrieveModel = (deps: HttpDeps, call: Call): Reply => {
  requireKnownModel(deps, call.param);
  const model = servedModels(deps).find(({ id }) => id === call.param);
  if (model === undefined) throw toUnservedFault(call.param, "no_provider");
  return json(renderModel(toEntry(deps, model)));
};
