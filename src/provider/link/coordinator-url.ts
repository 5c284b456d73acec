/** Turns whatever a person pastes as the coordinator's address into the one URL of its provider socket. */
import { Fault } from "../../core/fault.ts";

export const PROVIDER_SOCKET_PATH = "/ws/provider";

export interface CoordinatorUrl {
  /** `ws(s)://host[:port]/ws/provider`. */
  readonly socketUrl: string;
  /** Set when prompts' envelope data and the join token would cross a network in the clear. */
  readonly warning: string | null;
}

const SOCKET_PROTOCOL: Readonly<Record<string, "ws:" | "wss:">> = {
  "ws:": "ws:",
  "http:": "ws:",
  "wss:": "wss:",
  "https:": "wss:",
};

const wrongUrl = (message: string): Fault =>
  new Fault("usage", message, { hint: "give --coordinator-url as https://host or ws://host:port" });

export const isLoopbackHost = (host: string): boolean =>
  host === "localhost" || host === "[::1]" || host === "::1" || /^127(\.\d{1,3}){3}$/.test(host);

/**
 * Takes ws, wss, http and https, with or without path; a bare `host:port` means ws on loopback and wss elsewhere.
 * A path in front of ours (a reverse proxy's) is kept. Faults: `usage`.
 */
export const toCoordinatorUrl = (text: string): CoordinatorUrl => {
  const trimmed = text.trim();
  const url = parse(trimmed);
  const protocol = SOCKET_PROTOCOL[url.protocol];
  if (protocol === undefined) throw wrongUrl(`the coordinator URL has the unknown scheme ${url.protocol}//`);
  if (url.hostname === "") throw wrongUrl("the coordinator URL names no host");
  if (url.username !== "" || url.password !== "")
    throw wrongUrl("the coordinator URL must not hold a user or password");
  const prefix = url.pathname.replace(/\/+$/, "");
  const path = prefix.endsWith(PROVIDER_SOCKET_PATH) ? prefix : `${prefix.replace(/\/v1$/, "")}${PROVIDER_SOCKET_PATH}`;
  const warning =
    protocol === "ws:" && !isLoopbackHost(url.hostname)
      ? `the connection to ${url.host} is not encrypted by TLS: prompts stay sealed, but the join token is readable on the way`
      : null;
  return { socketUrl: `${protocol}//${url.host}${path}`, warning };
};

const parse = (text: string): URL => {
  const full = /^[a-z][a-z0-9+.-]*:\/\//i.test(text) ? text : `wss://${text}`;
  if (!URL.canParse(full)) throw wrongUrl("the coordinator URL is not a URL");
  const url = new URL(full);
  // URL refuses to change the scheme of a special URL into ws, so a bare loopback address is parsed again.
  return full !== text && isLoopbackHost(url.hostname) ? new URL(`ws://${text}`) : url;
};
