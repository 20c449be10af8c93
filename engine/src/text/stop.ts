/**
 * @module
 * Stop strings in text that comes in pieces. The first stop string to be complete ends the text right before it, wherever
 * the pieces were cut, and what may still become one is held back: no part of it is ever emitted.
 */
import { SparsedgeError } from '../errors.ts'

/** One stop string, searched for as Knuth, Morris and Pratt do: one state, a few comparisons per code unit. */
class Pattern {
  readonly text: string
  /** [length]: longest proper prefix that is also a suffix of the first i + 1 code units. */
  readonly #borders: Int32Array
  /** How much of it the text so far ends with. */
  matched = 0

  constructor(text: string) {
    this.text = text
    this.#borders = new Int32Array(text.length)
    for (let i = 1; i < text.length; i++)
      this.#borders[i] = this.#extend(this.#borders[i - 1], text.charCodeAt(i))
  }

  /** @returns whether the text now ends with the whole pattern */
  step(unit: number): boolean {
    this.matched = this.#extend(this.matched, unit)
    return this.matched === this.text.length
  }

  #extend(matched: number, unit: number): number {
    let length = matched
    while (length > 0 && this.text.charCodeAt(length) !== unit) length = this.#borders[length - 1]
    return this.text.charCodeAt(length) === unit ? length + 1 : 0
  }
}

export class StopMatcher {
  readonly #patterns: readonly Pattern[]
  #held = ''

  /**
   * @param stops where one has half a character, it stands for the whole one that replaces it: no text has halves, and one
   * must not be cut in two to find them
   * @throws SparsedgeError `invalid_request` for an empty stop string, which would end every text before it begins
   */
  constructor(stops: readonly string[]) {
    if (stops.includes('')) throw new SparsedgeError('invalid_request', 'a stop string must not be empty')
    this.#patterns = stops.map((stop) => new Pattern(stop.toWellFormed()))
  }

  /**
   * Takes the next piece of text, until one was `stopped`.
   *
   * @returns the text that is now certain to come before any stop string; where two stop strings are complete at once, the
   * longer one counts
   */
  push(piece: string): { readonly text: string; readonly stopped: boolean } {
    if (this.#patterns.length === 0) return { text: piece, stopped: false }
    const text = this.#held + piece
    for (let i = this.#held.length; i < text.length; i++) {
      let found = 0
      for (const pattern of this.#patterns) {
        if (pattern.step(text.charCodeAt(i))) found = Math.max(found, pattern.text.length)
      }
      if (found > 0) return { text: text.slice(0, i + 1 - found), stopped: true }
    }
    const held = this.#patterns.reduce((longest, { matched }) => Math.max(longest, matched), 0)
    this.#held = text.slice(text.length - held)
    return { text: text.slice(0, text.length - held), stopped: false }
  }

  /** @returns what was held back; the text ended without a stop string */
  end(): string {
    return this.#held
  }
}
