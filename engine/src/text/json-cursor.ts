/**
 * @module
 * Walks JSON bytes without building what they say: tokenizer.json is megabytes of vocabulary that would stand on the
 * heap twenty times over if it were parsed. Small values are handed to JSON.parse, large ones are visited in place.
 */
import { SparsedgeError } from '../errors.ts'

const QUOTE = 0x22
const BACKSLASH = 0x5c
const COLON = 0x3a
const COMMA = 0x2c
const OPEN_BRACE = 0x7b
const CLOSE_BRACE = 0x7d
const OPEN_BRACKET = 0x5b
const CLOSE_BRACKET = 0x5d

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

export class JsonCursor {
  readonly bytes: Uint8Array
  /** Index of the next byte. */
  at: number

  constructor(bytes: Uint8Array, at = 0) {
    this.bytes = bytes
    this.at = at
  }

  /** A second cursor at the same place. */
  copy(): JsonCursor {
    return new JsonCursor(this.bytes, this.at)
  }

  /** Calls `value` once per member of an object, the cursor on the value; `value` must consume it. */
  object(value: (key: string) => void): void {
    this.members(() => {
      const key = this.string()
      this.expect(COLON)
      value(key)
    })
  }

  /** Calls `member` once per member of an object, the cursor on its key; `member` must consume key, colon and value. */
  members(member: () => void): void {
    this.#list(OPEN_BRACE, CLOSE_BRACE, member)
  }

  /** Calls `item` once per item, the cursor on it; `item` must consume it. */
  array(item: () => void): void {
    this.#list(OPEN_BRACKET, CLOSE_BRACKET, item)
  }

  string(): string {
    const value = this.value()
    return typeof value === 'string' ? value : this.fail('a string')
  }

  /** Consumes a value of any type. */
  value(): unknown {
    this.#space()
    const start = this.at
    this.skip()
    try {
      return JSON.parse(utf8.decode(this.bytes.subarray(start, this.at)))
    } catch {
      this.at = start
      return this.fail('a value')
    }
  }

  /** A non-negative integer of at most nine digits. */
  integer(): number {
    this.#space()
    const start = this.at
    let value = 0
    while (isDigit(this.bytes[this.at])) value = value * 10 + this.bytes[this.at++] - 0x30
    if (this.at === start || this.at - start > 9) this.fail('an integer')
    return value
  }

  /** Consumes a value without looking into it. Brackets are counted, not matched; whoever parses the span finds out. */
  skip(): void {
    this.#space()
    const { bytes } = this
    let at = this.at
    let depth = 0
    do {
      const byte = bytes[at]
      if (byte === QUOTE) {
        for (at++; at < bytes.length && bytes[at] !== QUOTE; at++) if (bytes[at] === BACKSLASH) at++
      } else if (byte === OPEN_BRACE || byte === OPEN_BRACKET) depth++
      else if (byte === CLOSE_BRACE || byte === CLOSE_BRACKET) depth--
      else if (depth === 0) {
        while (isScalar(bytes[at + 1])) at++
      }
      at++
    } while (depth > 0 && at < bytes.length)
    if (depth !== 0 || at > bytes.length) this.fail('a value')
    this.at = at
  }

  expect(byte: number): void {
    if (!this.accept(byte)) this.fail(`'${String.fromCharCode(byte)}'`)
  }

  /** Consumes white space and then the byte, if it is there. */
  accept(byte: number): boolean {
    this.#space()
    if (this.bytes[this.at] !== byte) return false
    this.at++
    return true
  }

  /** Whether nothing but white space is left. */
  get ended(): boolean {
    this.#space()
    return this.at >= this.bytes.length
  }

  fail(wanted: string): never {
    throw new SparsedgeError(
      'manifest_malformed',
      `tokenizer.json: ${wanted} was expected at byte ${this.at}; write the pack again from the model's own file`,
    )
  }

  #list(open: number, close: number, item: () => void): void {
    this.expect(open)
    if (this.accept(close)) return
    do item()
    while (this.accept(COMMA))
    this.expect(close)
  }

  #space(): void {
    while (isSpace(this.bytes[this.at])) this.at++
  }
}

function isSpace(byte: number): boolean {
  return byte === 0x20 || byte === 0x0a || byte === 0x0d || byte === 0x09
}

/** Whether a byte goes on with a number, `true`, `false` or `null`. */
function isScalar(byte: number): boolean {
  return (
    isDigit(byte) ||
    (byte >= 0x61 && byte <= 0x7a) ||
    byte === 0x2b ||
    byte === 0x2d ||
    byte === 0x2e ||
    byte === 0x45
  )
}

function isDigit(byte: number): boolean {
  return byte >= 0x30 && byte <= 0x39
}
