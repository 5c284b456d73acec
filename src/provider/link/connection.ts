/** What an attempt needs of the connection it came on; it never outlives that connection. */
import type { ProviderMessage } from "../../protocol/messages.ts";

export interface Connection {
  /** Rises by one per connection of this process; for logs. */
  readonly number: number;
  /** False once lost: sending is then a no-op, because a dropped socket ends its attempts. */
  readonly isOpen: boolean;
  /** Accepted for sending but not yet taken by the system. */
  readonly bufferedBytes: number;
  sendControl(message: ProviderMessage): void;
  sendFrame(bytes: Uint8Array): void;
}
