/** What happens between a verified statement and the registry: the provider is recorded, its models checked, its standing told. */
import { errorFields } from "../../core/log.ts";
import { isTrustAtLeast, type TrustLevel } from "../../core/trust.ts";
import { providerIdOf } from "../../trust/provider-id.ts";
import type { ProviderIdentity } from "../routing/connected-provider.ts";
import { admitModels, type AdmittedModels } from "./admit-models.ts";
import type { SessionDeps } from "./session-deps.ts";
import type { Registration, Standing } from "./session.ts";

export const toIdentity = (registration: Registration, connectionId: string): ProviderIdentity => ({
  id: providerIdOf(registration.identity_key),
  connectionId,
  identityKey: registration.identity_key,
  version: registration.version,
  chip: registration.hardware.chip_name,
  machineModel: registration.hardware.machine_model,
});

const NO_MODELS: AdmittedModels = { models: new Map(), refused: [] };

/** Null when the store fails: the provider is told to come back, and nothing is routed that is not on disk. */
export const recordProvider = (
  deps: Pick<SessionDeps, "store" | "clock" | "log" | "options">,
  registration: Registration,
  terms: { readonly trustLevel: TrustLevel; readonly allowed: readonly string[] | null },
): AdmittedModels | null => {
  const id = providerIdOf(registration.identity_key);
  const nowMs = deps.clock.nowMs();
  try {
    deps.store.providers.save({
      id,
      identityKey: registration.identity_key,
      version: registration.version,
      chip: registration.hardware.chip_name,
      machineModel: registration.hardware.machine_model,
      trustLevel: terms.trustLevel,
      seenAtMs: nowMs,
    });
    // Who may not serve must not decide either what an id stands for.
    if (!isTrustAtLeast(terms.trustLevel, deps.options.minTrust)) return NO_MODELS;
    return admitModels(deps, { providerId: id, models: registration.models, allowed: terms.allowed, nowMs });
  } catch (thrown) {
    deps.log.error("provider_not_recorded", { provider: id, ...errorFields(thrown) });
    return null;
  }
};

/** What an admitted provider is told first: the first model that was refused, or that all is well. */
export const toStanding = (trustLevel: TrustLevel, admitted: AdmittedModels, minTrust: TrustLevel): Standing => {
  if (!isTrustAtLeast(trustLevel, minTrust))
    return { status: "waiting", trustLevel, reason: "trust_too_low", seen: trustLevel, expected: minTrust };
  const [refused] = admitted.refused;
  if (refused === undefined) return { status: "online", trustLevel, reason: "verified", seen: null, expected: null };
  const { reason, seen, expected } = refused;
  return { status: admitted.models.size > 0 ? "online" : "untrusted", trustLevel, reason, seen, expected };
};
