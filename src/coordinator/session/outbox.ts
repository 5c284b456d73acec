/** Everything sent to one provider passes here: a budget before each send, and no frame that Bun dropped goes unnoticed. */
import { Fault } from "../../core/fault.ts";
import { SOCKET_BUDGET_BYTES_MAX } from "../../core/limits.ts";

/** The part of Bun's ServerWebSocket that sending needs. */
export interface SendingSocket {
  /** Bytes sent, −1 when queued behind others, 0 when dropped. */
  sendText(text: string): number;
  sendBinary(bytes: Uint8Array): number;
  getBufferedAmount(): number;
}

export class Outbox {
  readonly #socket: SendingSocket;
  readonly #onDropped: () => void;
  #broken = false;

  /** `onDropped` is called once, when a frame was lost: the socket has to go. */
  constructor(socket: SendingSocket, onDropped: () => void) {
    this.#socket = socket;
    this.#onDropped = onDropped;
  }

  /** False when there is no room for this many bytes more. */
  fits(sizeBytes: number): boolean {
    return !this.#broken && this.#socket.getBufferedAmount() + sizeBytes <= SOCKET_BUDGET_BYTES_MAX;
  }

  /** A control message that cannot go out means that the peer reads nothing: the socket is given up. */
  sendText(text: string): void {
    if (this.#broken) return;
    if (!this.fits(text.length) || this.#socket.sendText(text) === 0) this.#break();
  }

  /** A message and its data frames, all or nothing as far as the budget goes. Throws `capacity` without having sent anything. */
  sendAll(text: string, frames: readonly Uint8Array[]): void {
    const sizeBytes = frames.reduce((sum, frame) => sum + frame.length, text.length);
    if (!this.fits(sizeBytes))
      throw new Fault("capacity", "the connection to the provider is full", { reason: "capacity_busy" });
    this.sendText(text);
    for (const frame of frames) if (!this.#broken && this.#socket.sendBinary(frame) === 0) this.#break();
    if (this.#broken) throw new Fault("provider_failed", "provider disconnected");
  }

  #break(): void {
    this.#broken = true;
    this.#onDropped();
  }
}
