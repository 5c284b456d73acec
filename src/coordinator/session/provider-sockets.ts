/** All provider connections of a coordinator, on Bun.serve's WebSocket: upgrade, events, the once-a-second tick, the end. */
import type { Server, ServerWebSocket, WebSocketHandler } from "bun";
import type { Timer } from "../../core/clock.ts";
import { Fault } from "../../core/fault.ts";
import {
  CONTROL_FRAME_BYTES_MAX,
  DATA_FRAME_BYTES_MAX_COORDINATOR,
  SOCKET_BACKPRESSURE_BYTES_MAX,
} from "../../core/limits.ts";
import { CLOSE_CODES } from "../../protocol/close-codes.ts";
import { SUBPROTOCOL } from "../../protocol/timers.ts";
import { ProviderConnection, type ConnectionTicket } from "./connection.ts";
import type { SessionDeps } from "./session-deps.ts";
import { authorizeUpgrade, ConnectionLimits, type UpgradeDeps } from "./upgrade.ts";

/** Carried by each socket from its upgrade on. */
export interface SocketData {
  readonly ticket: ConnectionTicket;
  readonly release: () => void;
  connection: ProviderConnection | null;
}

type Socket = ServerWebSocket<SocketData>;

const TICK_MS = 1_000;

export class ProviderSockets {
  readonly #deps: Omit<SessionDeps, "replace">;
  readonly #upgradeDeps: UpgradeDeps;
  readonly #limits: ConnectionLimits;
  readonly #connections = new Map<string, ProviderConnection>();
  readonly #ticker: Timer;

  constructor(deps: Omit<SessionDeps, "replace">, upgradeDeps: UpgradeDeps) {
    this.#deps = deps;
    this.#upgradeDeps = upgradeDeps;
    this.#limits = new ConnectionLimits(upgradeDeps.options);
    this.#ticker = deps.clock.every(TICK_MS, () => {
      for (const connection of this.#connections.values()) connection.tick();
    });
  }

  get size(): number {
    return this.#connections.size;
  }

  /** Throws the Fault that refuses the upgrade; returns once the socket is taken over. */
  upgrade(server: Server<SocketData>, request: Request, ip: string): void {
    const ticket = authorizeUpgrade(this.#upgradeDeps, request);
    const release = this.#limits.enter(ticket, ip);
    const data: SocketData = { ticket, release, connection: null };
    if (server.upgrade(request, { data, headers: { "Sec-WebSocket-Protocol": SUBPROTOCOL } })) return;
    release();
    throw new Fault("bad_request", "the WebSocket upgrade failed");
  }

  /** For `Bun.serve({ websocket })`. */
  handler(): WebSocketHandler<SocketData> {
    return {
      perMessageDeflate: false,
      maxPayloadLength: DATA_FRAME_BYTES_MAX_COORDINATOR,
      backpressureLimit: SOCKET_BACKPRESSURE_BYTES_MAX,
      closeOnBackpressureLimit: true,
      // Pings and silence are counted by the sessions, on the injected clock.
      sendPings: false,
      idleTimeout: 960,
      open: (socket) => this.#open(socket),
      message: (socket, message) => this.#message(socket, message),
      pong: (socket) => socket.data.connection?.onPong(),
      ping: (socket) => socket.data.connection?.onPong(),
      close: (socket, code) => this.#close(socket, code),
    };
  }

  /** Ends the connections that came in on a join token which is no longer good. */
  dropToken(tokenId: string): void {
    for (const connection of this.#connections.values())
      if (connection.tokenId === tokenId) connection.close(CLOSE_CODES.policy, "token_revoked");
  }

  /** Ends every connection. */
  stop(): void {
    this.#ticker.cancel();
    for (const connection of this.#connections.values()) connection.close(CLOSE_CODES.goingAway, "coordinator_restart");
  }

  #open(socket: Socket): void {
    const connection = new ProviderConnection(
      { ...this.#deps, replace: (id) => this.#connections.get(id)?.close(CLOSE_CODES.normal, "replaced") },
      socket,
      socket.data.ticket,
    );
    // Views of a Buffer cost several times those of a plain array, and each frame takes four.
    socket.binaryType = "uint8array";
    socket.data.connection = connection;
    this.#connections.set(connection.id, connection);
  }

  #message(socket: Socket, message: string | Uint8Array): void {
    const { connection } = socket.data;
    if (connection === null) return;
    if (typeof message !== "string") return connection.onBinary(message);
    if (Buffer.byteLength(message) > CONTROL_FRAME_BYTES_MAX)
      return connection.close(CLOSE_CODES.tooBig, "control frame too large");
    connection.onText(message);
  }

  #close(socket: Socket, code: number): void {
    const { connection, release } = socket.data;
    release();
    if (connection === null) return;
    this.#connections.delete(connection.id);
    connection.onClose(code);
  }
}
