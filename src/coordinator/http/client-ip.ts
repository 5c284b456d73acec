/** The address a request comes from, behind the proxies the owner trusts. */
import { isIP } from "node:net";

/** `::ffff:10.0.0.1` is the same machine as `10.0.0.1`. */
const normalize = (address: string): string => address.replace(/^::ffff:(?=\d+\.)/i, "").toLowerCase();

/** From the right, the first address that is not a trusted proxy: what stands left of it anybody could have written. */
export const clientIp = (remote: string, forwardedFor: string | null, trustedProxies: readonly string[]): string => {
  const trusted = new Set(trustedProxies.map(normalize));
  let ip = normalize(remote);
  const hops = (forwardedFor ?? "").split(",").map((hop) => normalize(hop.trim()));
  while (trusted.has(ip)) {
    const next = hops.pop();
    if (next === undefined || isIP(next) === 0) break;
    ip = next;
  }
  return ip;
};
