/**
 * @module
 * The alphabet of GPT-2's byte-level vocabularies: every byte is written as one printable character, so that a vocabulary
 * of byte strings can be a JSON object. Printable Latin-1 stands for itself; the other 68 bytes are U+0100 onwards, in
 * order (a space is Ġ, a line feed Ċ).
 */
import type { JsonCursor } from './json-cursor.ts'

const QUOTE = 0x22
const BACKSLASH = 0x5c
const SPACE = 0x20
/** Characters of the alphabet are below this. */
const LIMIT = 0x144

/** Code unit → byte, or -1 where the character is not of the alphabet. */
const BYTE_OF = new Int16Array(LIMIT).fill(-1)
for (let byte = 0, beyond = 0x100; byte < 256; byte++) BYTE_OF[printable(byte) ? byte : beyond++] = byte

function printable(byte: number): boolean {
  return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae
}

/** What {@link readByteString} found besides bytes. */
export interface ByteString {
  /** Index in `out` after the last byte. */
  end: number
  /** Index in `out` where the only space stood (a merge written as `left right`), or -1. */
  gap: number
  /** Whether every character was of the alphabet or the one space. */
  readable: boolean
}

/**
 * Consumes a JSON string at the cursor and writes the bytes that it stands for.
 *
 * @param out is written from `start`; the caller has made room for as many bytes as the JSON has
 * @param found is overwritten, so that a vocabulary of a hundred thousand words costs no garbage
 */
export function readByteString(cursor: JsonCursor, out: Uint8Array, start: number, found: ByteString): void {
  cursor.expect(QUOTE)
  const { bytes } = cursor
  let at = cursor.at
  let end = start
  found.gap = -1
  found.readable = true
  for (;;) {
    if (at >= bytes.length) cursor.fail('the end of a string')
    const byte = bytes[at++]
    if (byte === QUOTE) break
    let unit = byte
    if (byte === BACKSLASH) {
      unit = escaped(bytes, at)
      at += bytes[at] === 0x75 ? 5 : 1
    } else if (byte >= 0x80) {
      // Two bytes reach U+07FF, more than the alphabet needs; longer characters are not of it in any case.
      unit = byte >> 5 === 6 ? ((byte & 31) << 6) | (bytes[at] & 63) : LIMIT
      while (bytes[at] >> 6 === 2) at++
    }
    if (unit === SPACE && found.gap < 0) found.gap = end
    else if (unit < LIMIT && BYTE_OF[unit] >= 0) out[end++] = BYTE_OF[unit]
    else found.readable = false
  }
  cursor.at = at
  found.end = end
}

/** The code unit of the escape whose letter stands at `at`: `\uXXXX`, or a character that stands for itself (`\"`, `\\`,
 * `\/`). Control characters are not of the alphabet, so that the other letters need no meaning. */
function escaped(bytes: Uint8Array, at: number): number {
  const letter = bytes[at]
  if (letter === QUOTE || letter === BACKSLASH || letter === 0x2f) return letter
  if (letter !== 0x75) return LIMIT
  const unit = Number.parseInt(String.fromCharCode(...bytes.subarray(at + 1, at + 5)), 16)
  return Number.isNaN(unit) ? LIMIT : unit
}
