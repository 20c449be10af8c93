/**
 * @module
 * Turns tokens into text while they come. A token may end within a character: what is not certain yet is held back, so
 * that the pieces never hold half a character and concatenate to what decoding all tokens at once gives.
 */

export interface Detokenizer {
  /** @returns the text that has become certain, often a word, sometimes nothing */
  push(token: number): string
  /** @returns the rest: bytes that never became a character are U+FFFD, as in the reference decoder */
  end(): string
}

/** For vocabularies of byte strings: the decoder of the platform holds back what is not certain. */
export class ByteDetokenizer implements Detokenizer {
  readonly #word: (token: number) => Uint8Array
  readonly #utf8 = new TextDecoder('utf-8', { ignoreBOM: true })

  /** @param word the bytes of a token */
  constructor(word: (token: number) => Uint8Array) {
    this.#word = word
  }

  push(token: number): string {
    return this.#utf8.decode(this.#word(token), { stream: true })
  }

  end(): string {
    return this.#utf8.decode()
  }
}

/**
 * For every other kind: decodes a window that begins one piece back, since what a token means may depend on the token
 * before it, and emits what the window's text has gained. U+FFFD at its end may yet become a character.
 */
export class WindowDetokenizer implements Detokenizer {
  readonly #decode: (tokens: readonly number[]) => string
  #window: number[] = []
  /** How many tokens of the window have been emitted, and their text. */
  #emitted = 0
  #text = ''

  constructor(decode: (tokens: readonly number[]) => string) {
    this.#decode = decode
  }

  push(token: number): string {
    this.#window.push(token)
    const text = this.#decode(this.#window)
    return text.length <= this.#text.length || text.endsWith('\ufffd') ? '' : this.#advance(text)
  }

  end(): string {
    return this.#emitted === this.#window.length ? '' : this.#advance(this.#decode(this.#window))
  }

  #advance(text: string): string {
    const piece = text.slice(this.#text.length)
    this.#window = this.#window.slice(this.#emitted)
    this.#emitted = this.#window.length
    this.#text = this.#decode(this.#window)
    return piece
  }
}
