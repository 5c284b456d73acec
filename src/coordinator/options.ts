/** Every setting of a coordinator, with its unit; names and defaults are those of the configuration table's `coordinator` section. */
import type { TrustLevel } from "../core/trust.ts";

export interface CoordinatorOptions {
  /** Address to listen on. */
  readonly host: string;
  /** 0 = any free port. */
  readonly port: number;
  /** URL under which the world reaches this coordinator; null = host and port. */
  readonly publicUrl: string | null;
  /** PEM text of the certificate chain; null = no TLS. */
  readonly tlsCert: string | null;
  /** PEM text of the private key; goes with `tlsCert`. */
  readonly tlsKey: string | null;
  /** Allows an address other than loopback without TLS. */
  readonly insecureLan: boolean;
  /** Addresses whose `X-Forwarded-For` is believed. */
  readonly trustedProxies: readonly string[];
  /** Origin that browsers may call from; null = no CORS headers. */
  readonly corsOrigin: string | null;
  /** Folder of `admin.sock`; null = no admin socket. */
  readonly dataDir: string | null;
  /** Least trust level of a provider that may serve. */
  readonly minTrust: TrustLevel;
  /** Lets providers connect without a join token. */
  readonly anonymousProviders: boolean;
  /** Provider connections at once per join token. */
  readonly connectionsPerTokenMax: number;
  /** Provider connections at once per address. */
  readonly connectionsPerIpMax: number;
  /** Time between heartbeats, told to providers in `welcome`. */
  readonly heartbeatMs: number;
  /** Time between WebSocket pings. */
  readonly pingMs: number;
  /** Silence after which a provider's connection is dropped. */
  readonly peerSilenceMs: number;
  /** Time between attestation challenges of one provider. */
  readonly challengeMs: number;
  /** Time a provider has to answer a challenge. */
  readonly challengeReplyMs: number;
  /** Age up to which an answered challenge counts for routing. */
  readonly challengeFreshMs: number;
  /** First content: this from the consumer's request … */
  readonly firstContentBaseMs: number;
  /** … and this for each estimated prompt token. */
  readonly firstContentPerTokenMs: number;
  /** Silence of an accepted attempt after which it is given up. */
  readonly silenceMs: number;
  /** Silence after which a stream commits and gets keep-alive comments; 0 = never. */
  readonly keepAliveMs: number;
  /** Providers tried per request. */
  readonly attemptsMax: number;
  /** Time a consumer has to send its request body. */
  readonly bodyMs: number;
  /** Time running requests get when the coordinator drains. */
  readonly drainMs: number;
}
