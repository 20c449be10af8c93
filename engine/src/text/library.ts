/**
 * @module
 * The way for every kind of tokenizer that the compact one cannot prove it handles: Hugging Face's library. It takes
 * some 340 bytes of heap a word.
 */
import { Tokenizer as HuggingFaceTokenizer } from '@huggingface/tokenizers'
import { type Detokenizer, WindowDetokenizer } from './detokenizer.ts'
import type { Vocabulary } from './tokenizer.ts'

export class LibraryVocabulary implements Vocabulary {
  readonly kind = 'library'
  readonly longest = Number.POSITIVE_INFINITY
  readonly #library: HuggingFaceTokenizer

  /** @param json tokenizer.json, parsed; added tokens and post-processing are the caller's, the same for all kinds */
  constructor(json: object, ids: number) {
    this.#library = new HuggingFaceTokenizer({ ...json, added_tokens: [], post_processor: null }, {})
    for (const [word, id] of this.#library.get_vocab()) {
      if (!(id < ids))
        throw new Error(`${JSON.stringify(word)} has id ${id}, which is not one of the model's ${ids}`)
    }
  }

  encode(text: string, into: number[]): void {
    // A word that is unknown to a vocabulary without an unknown token is left out, as in the compact form.
    for (const id of this.#library.encode(text).ids) if (id !== undefined) into.push(id)
  }

  detokenizer(): Detokenizer {
    return new WindowDetokenizer((tokens) => this.#decode(tokens))
  }

  #decode(tokens: readonly number[]): string {
    const known = tokens.filter((token) => this.#library.id_to_token(token) !== undefined)
    if (known.length === 0) return ''
    return this.#library.decode(known, { clean_up_tokenization_spaces: false })
  }
}
