/** What every provider connection needs. */
import type { Clock } from "../../core/clock.ts";
import type { Ids, Random } from "../../core/ids.ts";
import type { Log } from "../../core/log.ts";
import type { Signer } from "../../trust/signer.ts";
import type { CoordinatorOptions } from "../options.ts";
import type { ProviderRegistry } from "../routing/registry.ts";
import type { Store } from "../store/store.ts";
import type { IdentityMemory } from "./identity-memory.ts";

export interface SessionDeps {
  readonly clock: Clock;
  readonly random: Random;
  readonly ids: Ids;
  readonly log: Log;
  readonly signer: Signer;
  readonly store: Pick<Store, "providers" | "modelPins">;
  readonly registry: ProviderRegistry;
  readonly memory: IdentityMemory;
  readonly options: Pick<
    CoordinatorOptions,
    "challengeMs" | "challengeReplyMs" | "heartbeatMs" | "minTrust" | "peerSilenceMs" | "pingMs"
  >;
  /** Ends an older connection whose identity has connected anew. */
  readonly replace: (connectionId: string) => void;
}
