/** Ownership of one native object: use after dispose is a Fault, a second dispose is harmless, a parent takes its children along. */
import type { Pointer } from "bun:ffi";
import { Fault } from "../src/core/fault.ts";

export class Handle implements Disposable {
  readonly #what: string;
  readonly #close: (pointer: Pointer) => void;
  readonly #parent: Handle | null;
  readonly #children = new Set<Handle>();
  #pointer: Pointer | null;

  /** `what` names the object in the Fault. The parent, if any, outlives this handle: disposing it disposes this one first. */
  constructor(what: string, pointer: Pointer, close: (pointer: Pointer) => void, parent: Handle | null = null) {
    this.#what = what;
    this.#pointer = pointer;
    this.#close = close;
    this.#parent = parent;
    if (parent !== null) parent.#children.add(this);
  }

  /** The live pointer; throws `disposed` otherwise. */
  get pointer(): Pointer {
    if (this.#pointer === null) throw new Fault("disposed", `this ${this.#what} is closed`);
    return this.#pointer;
  }

  get disposed(): boolean {
    return this.#pointer === null;
  }

  [Symbol.dispose](): void {
    const pointer = this.#pointer;
    if (pointer === null) return;
    for (const child of this.#children) child[Symbol.dispose]();
    this.#pointer = null; // before the native call, so that a second dispose finds nothing even if it throws
    if (this.#parent !== null) this.#parent.#children.delete(this);
    this.#close(pointer);
  }
}
