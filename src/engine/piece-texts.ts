/** Text of every token that is whole text by itself, made once: most tokens then cost a lookup instead of a decoder. */
import type { Model } from "../../ffi/model.ts";
import { completeText, type Utf8Stream } from "./stop-matcher.ts";

export class PieceTexts {
  readonly #model: Pick<Model, "piece">;
  /** By token, without and with the text of marks; null = not whole text, undefined = not looked at yet. */
  readonly #plain: (string | null | undefined)[];
  readonly #special: (string | null | undefined)[];

  constructor(model: Pick<Model, "piece" | "vocabSize">) {
    this.#model = model;
    this.#plain = Array.from({ length: model.vocabSize });
    this.#special = Array.from({ length: model.vocabSize });
  }

  /** What the token adds to a text; `special` shows marks such as `<tool_call>`, which otherwise have no text. */
  append(stream: Utf8Stream, token: number, special: boolean): string {
    const cache = special ? this.#special : this.#plain;
    let text = cache[token];
    if (text === undefined) {
      text = completeText(this.#model.piece(token, special ? SPECIAL : PLAIN));
      cache[token] = text;
    }
    if (text !== null && stream.clean) return text;
    return stream.push(this.#model.piece(token, special ? SPECIAL : PLAIN));
  }
}

const SPECIAL = { special: true } as const;
const PLAIN = { special: false } as const;
