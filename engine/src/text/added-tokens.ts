/**
 * @module
 * Tokens that stand beside the vocabulary and are found in text before anything else: control tokens such as
 * `<|im_end|>`, and whatever else a model's maker added. Text that a stranger wrote can be protected from them.
 */
import { z } from 'zod'
import { SparsedgeError } from '../errors.ts'

export const AddedToken = z.object({
  id: z.int().nonnegative(),
  content: z.string().min(1).max(256),
  /** Matched only between non-letters. No model in reach uses it. */
  single_word: z.literal(false).default(false),
  /** White space before (after) the token goes with it. */
  lstrip: z.boolean().default(false),
  rstrip: z.boolean().default(false),
  /** A control token: it never shows in generated text. */
  special: z.boolean().default(false),
})
export type AddedToken = z.infer<typeof AddedToken>

/**
 * Stand-ins for protected characters are lone low surrogates. No well-formed text holds one, so that they can pass through
 * any template between protection and encoding and still mean only this.
 */
const STAND_IN = 0xdc00
const STAND_INS = 0x400
const LONE_LOW_SURROGATE = /[\uDC00-\uDFFF]/gu

export class AddedTokens {
  readonly byId: ReadonlyMap<number, AddedToken>
  /** Any token, the longest first; undefined where there is none. */
  readonly #any: RegExp | undefined
  readonly #byContent: ReadonlyMap<string, AddedToken>
  /** A character with which a token begins that protected text must not hold. */
  readonly #beginning: RegExp | undefined
  /** What the stand-ins stand for. */
  readonly #firsts: readonly string[]

  /** @throws SparsedgeError `manifest_malformed` for more first characters than there are stand-ins */
  constructor(tokens: readonly AddedToken[]) {
    this.byId = new Map(tokens.map((token) => [token.id, token]))
    this.#byContent = new Map(tokens.map((token) => [token.content, token]))
    const contents = longestFirst(tokens.map((token) => token.content))
    this.#any = contents.length > 0 ? new RegExp(contents.map(literal).join('|'), 'gu') : undefined
    // Runs of white space are vocabulary, not control, and trimming a message must go on working.
    const guarded = contents.filter((content) => content.trim() !== '')
    this.#beginning =
      guarded.length > 0 ? new RegExp(`(?=${guarded.map(beginningOf).join('|')}).`, 'gsu') : undefined
    this.#firsts = [...new Set(guarded.map((content) => [...content][0]))]
    if (this.#firsts.length > STAND_INS) {
      throw new SparsedgeError(
        'manifest_malformed',
        `the added tokens begin with ${this.#firsts.length} characters; ${STAND_INS} can be told apart`,
      )
    }
  }

  /** UTF-16 code units of the longest token. */
  get longest(): number {
    return Math.max(0, ...Array.from(this.#byContent.keys(), (content) => content.length))
  }

  idOf(content: string): number | undefined {
    return this.#byContent.get(content)?.id
  }

  /** Cuts text at added tokens: strings are ordinary text, numbers are ids. */
  split(text: string): (string | number)[] {
    const parts: (string | number)[] = []
    let start = 0
    let strip = false
    const ordinary = (end: number, lstrip: boolean) => {
      let piece = text.slice(start, end)
      if (strip) piece = piece.trimStart()
      if (lstrip) piece = piece.trimEnd()
      if (piece !== '') parts.push(piece)
    }
    for (const match of this.#any ? text.matchAll(this.#any) : []) {
      const token = this.#byContent.get(match[0])
      if (!token) continue
      ordinary(match.index, token.lstrip)
      parts.push(token.id)
      start = match.index + token.content.length
      strip = token.rstrip
    }
    ordinary(text.length, false)
    return parts
  }

  /**
   * Text in which {@link split} finds no token, nor one that begins in it and ends in what follows; {@link restore} gives
   * the text back. Tokens that are white space only are not guarded against.
   */
  protect(text: string): string {
    const wellFormed = text.toWellFormed()
    if (!this.#beginning) return wellFormed
    return wellFormed.replace(this.#beginning, (first) =>
      String.fromCharCode(STAND_IN + this.#firsts.indexOf(first)),
    )
  }

  /** Undoes {@link protect} in a piece that has been split. */
  restore(text: string): string {
    return text.replace(LONE_LOW_SURROGATE, (unit) => this.#firsts[unit.charCodeAt(0) - STAND_IN] ?? unit)
  }
}

/** Matches where a token begins, or where the text (but for white space, which a template may trim) ends within one. */
function beginningOf(content: string): string {
  return [...content].reduceRight((rest, char) => `${literal(char)}(?:\\s*$|${rest})`, '')
}

function longestFirst(contents: string[]): string[] {
  return contents.sort((a, b) => b.length - a.length)
}

function literal(text: string): string {
  return text.replace(/[\\^$.*+?()[\]{}|/]/g, '\\$&')
}
