/** The one place that touches `ws`: a client socket with our limits, reduced to what the link needs. */
import type { ClientRequest, IncomingMessage } from "node:http";
import { WebSocket } from "ws";
import { DATA_FRAME_BYTES_MAX_PROVIDER } from "../../core/limits.ts";
import { SUBPROTOCOL } from "../../protocol/timers.ts";

export interface LinkSocketEvents {
  readonly onOpen: () => void;
  readonly onText: (text: string) => void;
  readonly onBinary: (bytes: Uint8Array) => void;
  /** Any sign of life: data, ping, pong. */
  readonly onHeard: () => void;
  /** The upgrade was answered with an HTTP status. Nothing follows. */
  readonly onRefused: (status: number) => void;
  /** Once, whatever ended it; 1006 when the connection was cut or never made. Nothing follows. */
  readonly onClosed: (code: number) => void;
}

export interface LinkSocket {
  readonly bufferedBytes: number;
  send(data: string | Uint8Array): void;
  ping(): void;
  /** Says goodbye; a peer that does not answer is cut by `terminate`. */
  close(code: number): void;
  /** Cuts the connection; no further event comes. */
  terminate(): void;
}

export interface LinkSocketOptions {
  readonly url: string;
  /** The bearer secret; null for a coordinator that takes anonymous providers. */
  readonly secret: string | null;
  readonly connectMs: number;
}

export type OpenLinkSocket = (options: LinkSocketOptions, events: LinkSocketEvents) => LinkSocket;

/** `ws` turns Nagle's algorithm off by itself (it cost 40 to 200 ms per chunk when left on). */
export const openLinkSocket: OpenLinkSocket = (options, events) => {
  const socket = new WebSocket(options.url, [SUBPROTOCOL], {
    headers: options.secret === null ? {} : { Authorization: `Bearer ${options.secret}` },
    perMessageDeflate: false,
    maxPayload: DATA_FRAME_BYTES_MAX_PROVIDER,
    handshakeTimeout: options.connectMs,
    followRedirects: false,
  });
  let ended = false;
  const end = (tell: () => void): void => {
    if (ended) return;
    ended = true;
    tell();
  };
  socket.on("open", () => {
    if (!ended) events.onOpen();
  });
  socket.on("message", (data: Buffer | ArrayBuffer | Buffer[], isBinary: boolean) => {
    if (ended) return;
    events.onHeard();
    const bytes = toBytes(data);
    if (isBinary) events.onBinary(bytes);
    else events.onText(new TextDecoder().decode(bytes));
  });
  socket.on("ping", events.onHeard);
  socket.on("pong", events.onHeard);
  socket.on("unexpected-response", (request: ClientRequest, response: IncomingMessage) => {
    // With this listener `ws` leaves the request to us: without destroy it would stay open.
    request.destroy();
    end(() => events.onRefused(response.statusCode ?? 0));
  });
  // Always followed by "close", which tells; without a listener it would end the process.
  socket.on("error", () => undefined);
  socket.on("close", (code: number) => end(() => events.onClosed(code)));
  return {
    get bufferedBytes() {
      return socket.bufferedAmount;
    },
    send(data) {
      // The callback keeps a failed write from being thrown; "close" follows and tells.
      if (socket.readyState === WebSocket.OPEN) socket.send(data, () => undefined);
    },
    ping() {
      if (socket.readyState === WebSocket.OPEN) socket.ping();
    },
    close(code) {
      ended = true;
      if (socket.readyState === WebSocket.OPEN) socket.close(code);
      else socket.terminate();
    },
    terminate() {
      ended = true;
      socket.terminate();
    },
  };
};

const toBytes = (data: Buffer | ArrayBuffer | Buffer[]): Uint8Array => {
  if (Array.isArray(data)) return Buffer.concat(data);
  return data instanceof ArrayBuffer ? new Uint8Array(data) : data;
};
