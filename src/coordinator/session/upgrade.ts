/** Who may open a provider connection: checked before the upgrade, so that a stranger costs no socket. */
import type { Clock } from "../../core/clock.ts";
import { Fault } from "../../core/fault.ts";
import { bearerToken } from "../../core/http.ts";
import { SUBPROTOCOL } from "../../protocol/timers.ts";
import { authenticateJoinToken } from "../accounts/join-tokens.ts";
import type { CoordinatorOptions } from "../options.ts";
import type { JoinTokenStore } from "../store/store.ts";
import type { ConnectionTicket } from "./connection.ts";

export interface UpgradeDeps {
  readonly clock: Pick<Clock, "nowMs">;
  readonly store: { readonly joinTokens: JoinTokenStore };
  readonly options: Pick<CoordinatorOptions, "anonymousProviders" | "connectionsPerIpMax" | "connectionsPerTokenMax">;
}

const RETRY_AFTER_MS = 10_000;

/** Throws `bad_request` or `unauthenticated`. */
export const authorizeUpgrade = (deps: UpgradeDeps, request: Request): ConnectionTicket => {
  const offered = (request.headers.get("sec-websocket-protocol") ?? "").split(",").map((name) => name.trim());
  if (request.headers.get("upgrade")?.toLowerCase() !== "websocket" || !offered.includes(SUBPROTOCOL))
    throw new Fault("bad_request", `a WebSocket upgrade with subprotocol ${SUBPROTOCOL} is required`);
  const token = bearerToken(request);
  if (token !== null) {
    const joinToken = authenticateJoinToken(deps, token);
    return { tokenId: joinToken.id, models: joinToken.models };
  }
  if (deps.options.anonymousProviders) return { tokenId: null, models: null };
  throw new Fault("unauthenticated", "missing join token — use Authorization: Bearer <token>");
};

const count = (counts: Map<string, number>, key: string, delta: number): void => {
  const next = (counts.get(key) ?? 0) + delta;
  if (next > 0) counts.set(key, next);
  else counts.delete(key);
};

/** Connections open now, per join token and per address. */
export class ConnectionLimits {
  readonly #perToken = new Map<string, number>();
  readonly #perIp = new Map<string, number>();
  readonly #options: UpgradeDeps["options"];

  constructor(options: UpgradeDeps["options"]) {
    this.#options = options;
  }

  /** Takes one place; answers with its release, which may be called twice. Throws `queue_full` with reason `too_many_connections`. */
  enter(ticket: ConnectionTicket, ip: string): () => void {
    const { connectionsPerIpMax, connectionsPerTokenMax } = this.#options;
    const tokenFull = ticket.tokenId !== null && (this.#perToken.get(ticket.tokenId) ?? 0) >= connectionsPerTokenMax;
    if (tokenFull || (this.#perIp.get(ip) ?? 0) >= connectionsPerIpMax)
      throw new Fault("queue_full", "too many provider connections", {
        reason: "too_many_connections",
        retryAfterMs: RETRY_AFTER_MS,
      });
    const change = (delta: number): void => {
      if (ticket.tokenId !== null) count(this.#perToken, ticket.tokenId, delta);
      count(this.#perIp, ip, delta);
    };
    change(1);
    let held = true;
    return () => {
      if (held) change(-1);
      held = false;
    };
  }
}
