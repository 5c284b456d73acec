/** What a route is, and what its handler gets and gives. */
import type { Clock } from "../../core/clock.ts";
import type { Ids } from "../../core/ids.ts";
import type { Log } from "../../core/log.ts";
import type { DrainGate } from "../drain-gate.ts";
import type { CoordinatorOptions } from "../options.ts";
import type { DispatchDeps } from "../routing/dispatch.ts";
import type { Store, StoredKey } from "../store/store.ts";

export interface HttpDeps {
  readonly clock: Clock;
  readonly ids: Ids;
  readonly log: Log;
  readonly store: Store;
  readonly gate: DrainGate;
  readonly options: CoordinatorOptions;
  readonly dispatch: DispatchDeps;
  readonly version: string;
}

/** `public`: anybody. `key`: a valid API key. `provider`: a provider's token, checked by the upgrade. */
export type Access = "public" | "key" | "provider";

export interface Call {
  readonly request: Request;
  /** Aborts when the consumer is gone. */
  readonly signal: AbortSignal;
  /** Monotonic time of arrival. */
  readonly startedMs: number;
  /** Path parameter of the route, decoded; empty when it has none. */
  readonly param: string;
  /** The key it was made with; null on public routes. */
  readonly key: StoredKey | null;
  /** The whole body. Throws `payload_too_large`, `timeout`, `cancelled`. */
  readonly body: () => Promise<Uint8Array>;
  /** Keeps the request counted as in flight after the handler has returned, until the release is called. */
  readonly hold: () => () => void;
}

/** A JSON value, or a response that the dialect has made itself. */
export type Reply =
  | { readonly type: "json"; readonly status: number; readonly value: unknown }
  | { readonly type: "response"; readonly response: Response };

export interface Route {
  readonly method: "GET" | "POST";
  /** `{name}` matches one path segment. */
  readonly path: string;
  readonly access: Access;
  /** New work: counted in flight and refused while draining. */
  readonly gated: boolean;
  /** Returns a reply or throws a Fault; only `answer` builds responses from them. */
  readonly handler: (deps: HttpDeps, call: Call) => Reply | Promise<Reply>;
}

export const json = (value: unknown, status = 200): Reply => ({ type: "json", status, value });
