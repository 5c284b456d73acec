/** `GET /readyz`: whether new work is taken; 503 while draining or without a usable database. */
import { Fault } from "../../core/fault.ts";
import type { DrainGate } from "../drain-gate.ts";
import type { Store } from "../store/store.ts";
import { json, type HttpDeps, type Reply } from "./route.ts";

export interface Readiness {
  readonly ready: boolean;
  readonly draining: boolean;
  readonly inflight: number;
  readonly health_reason: string | null;
}

const storeReason = (store: Pick<Store, "probe">): string | null => {
  try {
    store.probe();
    return null;
  } catch (thrown) {
    if (thrown instanceof Fault) return thrown.code;
    throw thrown;
  }
};

export const readinessOf = (deps: { readonly gate: DrainGate; readonly store: Pick<Store, "probe"> }): Readiness => {
  const { draining, inFlight } = deps.gate;
  const reason = draining ? "draining" : storeReason(deps.store);
  return { ready: reason === null, draining, inflight: inFlight, health_reason: reason };
};

export const readReadyz = (deps: HttpDeps): Reply => {
  const readiness = readinessOf(deps);
  return json(readiness, readiness.ready ? 200 : 503);
};
