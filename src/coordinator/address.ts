/** Under which URLs consumers and providers reach a coordinator. */
import { isIP } from "node:net";
import { networkInterfaces } from "node:os";
import { Fault } from "../core/fault.ts";

/** Path of the provider link, which is upgraded before any handler runs. */
export const PROVIDER_PATH = "/ws/provider";

export interface Address {
  /** `http(s)://host:port`, without `/v1`. */
  readonly url: string;
  /** `ws(s)://host:port/ws/provider`. */
  readonly providerUrl: string;
}

export interface AddressOptions {
  readonly host: string;
  /** Stands for host and port where it is set. */
  readonly publicUrl: string | null;
  /** Null = no TLS. */
  readonly tlsCert: string | null;
}

const isBaseUrl = (text: string): boolean => {
  if (!URL.canParse(text)) return false;
  const { protocol, search, hash } = new URL(text);
  return (protocol === "http:" || protocol === "https:") && search === "" && hash === "";
};

type Interfaces = ReturnType<typeof networkInterfaces>;

/** Nobody else can dial "every address of this machine": its first outward one stands for it. */
const dialable = (host: string, interfaces: Interfaces): string => {
  if (host !== "0.0.0.0" && host !== "::") return host;
  const outward = Object.values(interfaces).flatMap((list) => list ?? []);
  return outward.find(({ internal, family }) => !internal && family === "IPv4")?.address ?? host;
};

/** Throws `config_invalid` for a public URL that is none. */
export const addressOf = (
  { host: bound, publicUrl, tlsCert }: AddressOptions,
  port: number,
  interfaces: Interfaces = networkInterfaces(),
): Address => {
  const host = dialable(bound, interfaces);
  if (publicUrl !== null && !isBaseUrl(publicUrl))
    throw new Fault("config_invalid", "the public URL is no http or https URL", {
      hint: "write it like https://coordinator.example",
    });
  const scheme = tlsCert === null ? "http" : "https";
  const own = `${scheme}://${isIP(host) === 6 ? `[${host}]` : host}:${port}`;
  const url = (publicUrl ?? own).replace(/\/+$/, "");
  return { url, providerUrl: `${url.replace(/^http/i, "ws")}${PROVIDER_PATH}` };
};
