/** The verified providers that are connected now: one per identity, the newest connection wins. */
import type { ConnectedProvider, RegisteredModel } from "./connected-provider.ts";
import { isServing, type PickContext } from "./pick.ts";
import type { WaitingRoom } from "./waiting-room.ts";

/** A model somebody serves now. */
export interface ServedModel {
  readonly id: string;
  readonly contextTokens: number;
  readonly manifestSha256: string;
}

export class ProviderRegistry {
  readonly #byId = new Map<string, ConnectedProvider>();
  readonly #room: Pick<WaitingRoom, "notify">;

  constructor(room: Pick<WaitingRoom, "notify">) {
    this.#room = room;
  }

  get size(): number {
    return this.#byId.size;
  }

  /** Adds a provider and answers with the older connection of the same identity that it replaces. */
  add(provider: ConnectedProvider): ConnectedProvider | null {
    const older = this.#byId.get(provider.id) ?? null;
    this.#byId.set(provider.id, provider);
    this.changed();
    return older;
  }

  /** Does nothing when a newer connection has taken its place. */
  remove(provider: ConnectedProvider): void {
    if (this.#byId.get(provider.id) === provider) this.#byId.delete(provider.id);
    this.changed();
  }

  /** Something about a provider changed that may make room for a waiting request. */
  changed(): void {
    this.#room.notify();
  }

  candidates(): Iterable<ConnectedProvider> {
    return this.#byId.values();
  }

  /** Every model that at least one provider may serve, by id; the smallest context any of them offers. */
  served(context: PickContext): readonly ServedModel[] {
    const served = new Map<string, ServedModel>();
    for (const provider of this.#byId.values())
      for (const model of provider.models.values())
        if (isServing(provider, model.id, context)) served.set(model.id, merge(served.get(model.id), model));
    return [...served.values()].sort((a, b) => (a.id < b.id ? -1 : 1));
  }
}

const merge = (known: ServedModel | undefined, model: RegisteredModel): ServedModel => ({
  id: model.id,
  contextTokens: Math.min(known?.contextTokens ?? model.context, model.context),
  manifestSha256: model.manifest_sha256,
});
