/**
 * @module
 * Tokens that stand beside the vocabulary and are found in text before anything else: control tokens such as
 * `<|im_end|>`, and whatever else a model's maker added. Text that a stranger wrote can be protected from them.
 */
import { z } from 'zod'
import { SparsedgeError } from '../errors.ts'

export const AddedToken = z.object({
  id: z.int().nonnegative(),
  content: z
    .string()
    .min(1)
    .max(256)
    .refine((content) => content.isWellFormed(), 'holds half a character'),
  /** Matched only between non-letters. No model in reach uses it. */
  single_word: z.literal(false).default(false),
  /** White space before (after) the token goes with it. */
  lstrip: z.boolean().default(false),
  rstrip: z.boolean().default(false),
  /** A control token: it never shows in generated text. */
  special: z.boolean().default(false),
})
export type AddedToken = z.infer<typeof AddedToken>

/** Code units of all tokens together; Llama 3's 256 have some 7,000. */
const MAX_UNITS = 1 << 16

/**
 * Stand-ins for protected characters are lone low surrogates. No well-formed text holds one, so that they can pass through
 * any template between protection and encoding and still mean only this.
 */
const STAND_IN = 0xdc00
const STAND_INS = 0x400
const LONE_LOW_SURROGATE = /[\uDC00-\uDFFF]/gu

/** All tokens that begin with the same code units; the root's begin with none. */
interface Branch {
  readonly next: Map<number, Branch>
  /** The token that ends here. */
  token: AddedToken | undefined
}

export class AddedTokens {
  readonly byId: ReadonlyMap<number, AddedToken>
  /** UTF-16 code units of the longest token. */
  readonly longest: number
  readonly #byContent: ReadonlyMap<string, AddedToken>
  readonly #all: Branch
  /** Those that protected text must not hold. */
  readonly #guarded: Branch
  /** What the stand-ins stand for: the characters with which a guarded token begins. */
  readonly #firsts: readonly string[]

  /** @throws SparsedgeError `manifest_malformed` for more text, or more first characters, than is taken */
  constructor(tokens: readonly AddedToken[]) {
    const units = tokens.reduce((sum, { content }) => sum + content.length, 0)
    if (units > MAX_UNITS)
      throw malformed(`the added tokens have ${units} characters together; up to ${MAX_UNITS} are taken`)
    this.byId = new Map(tokens.map((token) => [token.id, token]))
    this.#byContent = new Map(tokens.map((token) => [token.content, token]))
    this.longest = Math.max(0, ...tokens.map(({ content }) => content.length))
    this.#all = tree(tokens)
    // Runs of white space are vocabulary, not control, and trimming a message must go on working.
    const guarded = tokens.filter(({ content }) => content.trim() !== '')
    this.#guarded = tree(guarded)
    this.#firsts = [...new Set(guarded.map(({ content }) => firstOf(content, 0)))]
    if (this.#firsts.length > STAND_INS) {
      throw malformed(
        `the added tokens begin with ${this.#firsts.length} characters; ${STAND_INS} can be told apart`,
      )
    }
  }

  idOf(content: string): number | undefined {
    return this.#byContent.get(content)?.id
  }

  /** Cuts text at added tokens, the longest that begins first: strings are ordinary text, numbers are ids. */
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
    for (let at = 0; at < text.length; ) {
      const token = longestAt(text, at, this.#all)
      if (!token) {
        at += 1
        continue
      }
      ordinary(at, token.lstrip)
      parts.push(token.id)
      at += token.content.length
      start = at
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
    // A template may trim what ends a text.
    const end = wellFormed.trimEnd().length
    let safe = ''
    let start = 0
    for (let at = 0; at < wellFormed.length; ) {
      if (!beginsAt(wellFormed, at, end, this.#guarded)) {
        at += 1
        continue
      }
      const first = firstOf(wellFormed, at)
      safe += wellFormed.slice(start, at) + String.fromCharCode(STAND_IN + this.#firsts.indexOf(first))
      at += first.length
      start = at
    }
    return safe + wellFormed.slice(start)
  }

  /** Undoes {@link protect} in a piece that has been split. */
  restore(text: string): string {
    return text.replace(LONE_LOW_SURROGATE, (unit) => this.#firsts[unit.charCodeAt(0) - STAND_IN] ?? unit)
  }
}

function tree(tokens: readonly AddedToken[]): Branch {
  const root: Branch = { next: new Map(), token: undefined }
  for (const token of tokens) {
    let branch = root
    for (let i = 0; i < token.content.length; i++) {
      const unit = token.content.charCodeAt(i)
      const next = branch.next.get(unit) ?? { next: new Map(), token: undefined }
      branch.next.set(unit, next)
      branch = next
    }
    branch.token = token
  }
  return root
}

function longestAt(text: string, at: number, root: Branch): AddedToken | undefined {
  let longest: AddedToken | undefined
  let branch = root.next.get(text.charCodeAt(at))
  for (let i = at + 1; branch; i++) {
    longest = branch.token ?? longest
    branch = branch.next.get(text.charCodeAt(i))
  }
  return longest
}

/** Whether a whole token is at a place, or the beginning of one up to the text's `end`. */
function beginsAt(text: string, at: number, end: number, root: Branch): boolean {
  let branch = root.next.get(text.charCodeAt(at))
  for (let i = at + 1; branch; i++) {
    if (branch.token || i >= end) return true
    branch = branch.next.get(text.charCodeAt(i))
  }
  return false
}

/** The character at a place. */
function firstOf(text: string, at: number): string {
  return String.fromCodePoint(text.codePointAt(at) ?? 0)
}

function malformed(message: string): SparsedgeError {
  return new SparsedgeError('manifest_malformed', message)
}
