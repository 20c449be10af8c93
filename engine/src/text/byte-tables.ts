/**
 * @module
 * The tables of byte-level BPE, words and merges, in typed arrays: a library's maps of strings take ten times the heap,
 * which one isolate does not have beside a model. They are filled straight from the bytes of tokenizer.json.
 */
import { type ByteString, readByteString } from './byte-alphabet.ts'
import type { JsonCursor } from './json-cursor.ts'

const COLON = 0x3a
const OPEN_BRACKET = 0x5b
const CLOSE_BRACKET = 0x5d
const COMMA = 0x2c

/** The words of a vocabulary as byte strings, by id and by content. */
export class Vocabulary {
  /** All words, one after the other, in the order they were added. */
  #data: Uint8Array
  /** [ids]; a word that is not there has length 0. */
  readonly #starts: Uint32Array
  readonly #lengths: Uint16Array
  #end = 0
  /** Open addressing: id + 1, or 0 where free. */
  readonly #table: Int32Array
  readonly #shift: number

  /**
   * @param ids ids are below this
   * @param bytes room for the bytes of all words
   */
  constructor(ids: number, bytes: number) {
    this.#data = new Uint8Array(bytes)
    this.#starts = new Uint32Array(ids)
    this.#lengths = new Uint16Array(ids)
    this.#shift = tableShift(ids)
    this.#table = new Int32Array(2 ** (32 - this.#shift))
  }

  /** Where {@link readByteString} writes the next word before it is {@link add}ed. */
  get next(): { data: Uint8Array; start: number } {
    return { data: this.#data, start: this.#end }
  }

  /** @returns whether the id and the word were free, the id in range and the word not too long */
  add(id: number, end: number): boolean {
    const length = end - this.#end
    if (id >= this.#lengths.length || this.#lengths[id] > 0 || length === 0 || length > 0xffff) return false
    const slot = this.#slot(this.#data, this.#end, end)
    if (this.#table[slot] !== 0) return false
    this.#table[slot] = id + 1
    this.#starts[id] = this.#end
    this.#lengths[id] = length
    this.#end = end
    return true
  }

  /** Gives the room back that no word took. */
  trim(): void {
    this.#data = this.#data.slice(0, this.#end)
  }

  /** @returns the id of the word `data[start, end)`, or -1 */
  find(data: Uint8Array, start: number, end: number): number {
    return this.#table[this.#slot(data, start, end)] - 1
  }

  word(id: number): Uint8Array {
    return this.#data.subarray(this.#starts[id], this.#starts[id] + this.#lengths[id])
  }

  get longest(): number {
    return this.#lengths.reduce((longest, length) => Math.max(longest, length), 0)
  }

  /** The slot that holds the word, or the free one where it belongs. The table is never full. */
  #slot(data: Uint8Array, start: number, end: number): number {
    // FNV-1a, then spread over the high bits, which number the slots.
    let hash = 0x811c9dc5
    for (let i = start; i < end; i++) hash = Math.imul(hash ^ data[i], 0x01000193)
    let slot = Math.imul(hash, 0x9e3779b1) >>> this.#shift
    for (; this.#table[slot] !== 0; slot = (slot + 1) & (this.#table.length - 1)) {
      const id = this.#table[slot] - 1
      if (this.#lengths[id] !== end - start) continue
      const word = this.#starts[id]
      let i = 0
      while (i < end - start && this.#data[word + i] === data[start + i]) i++
      if (i === end - start) break
    }
    return slot
  }
}

/** Pairs of ids that become one, in order of rank. */
export class Merges {
  /** [merges], by rank. */
  readonly left: Int32Array
  readonly right: Int32Array
  readonly result: Int32Array
  /** Open addressing: rank + 1, or 0 where free. */
  readonly #table: Int32Array
  readonly #shift: number

  /** @param triples left, right, result of each merge. A pair that is listed twice counts where it is listed last, as in
   * the reference. */
  constructor(triples: readonly number[]) {
    const count = triples.length / 3
    this.left = Int32Array.from({ length: count }, (_, rank) => triples[3 * rank])
    this.right = Int32Array.from({ length: count }, (_, rank) => triples[3 * rank + 1])
    this.result = Int32Array.from({ length: count }, (_, rank) => triples[3 * rank + 2])
    this.#shift = tableShift(count)
    this.#table = new Int32Array(2 ** (32 - this.#shift))
    for (let rank = 0; rank < count; rank++) {
      this.#table[this.#slot(this.left[rank], this.right[rank])] = rank + 1
    }
  }

  /** @returns the rank of the pair, or -1 */
  rank(left: number, right: number): number {
    return this.#table[this.#slot(left, right)] - 1
  }

  #slot(left: number, right: number): number {
    let slot = Math.imul(Math.imul(left, 0x9e3779b1) ^ right, 0x85ebca6b) >>> this.#shift
    for (; this.#table[slot] !== 0; slot = (slot + 1) & (this.#table.length - 1)) {
      const rank = this.#table[slot] - 1
      if (this.left[rank] === left && this.right[rank] === right) break
    }
    return slot
  }
}

/** Right shift that turns a 32-bit hash into a slot of a table at most half full. */
function tableShift(entries: number): number {
  return Math.clz32(Math.max(entries, 1)) - 1
}

/** @returns undefined where a word is not made of the byte alphabet and not an added token's */
export function readVocabulary(
  cursor: JsonCursor,
  ids: number,
  isAdded: (id: number) => boolean,
  found: ByteString,
): Vocabulary | undefined {
  const words = new Vocabulary(ids, cursor.bytes.length - cursor.at)
  let byteLevel = true
  cursor.members(() => {
    const { data, start } = words.next
    readByteString(cursor, data, start, found)
    cursor.expect(COLON)
    const id = cursor.integer()
    if (id >= ids) cursor.fail(`an id below ${ids}`)
    if (!found.readable || found.gap >= 0) byteLevel &&= isAdded(id)
    else if (!words.add(id, found.end)) cursor.fail('an id and a word that are not taken')
  })
  if (!byteLevel) return undefined
  words.trim()
  return words
}

export function readMerges(cursor: JsonCursor, words: Vocabulary, found: ByteString): Merges {
  const triples: number[] = []
  const pair = new Uint8Array(2 * 0x10000)
  cursor.array(() => {
    const apart = cursor.accept(OPEN_BRACKET)
    readByteString(cursor, pair, 0, found)
    const middle = apart ? found.end : found.gap
    let readable = found.readable
    if (apart) {
      cursor.expect(COMMA)
      readByteString(cursor, pair, middle, found)
      readable &&= found.readable
      cursor.expect(CLOSE_BRACKET)
    }
    const left = words.find(pair, 0, middle)
    const right = words.find(pair, middle, found.end)
    const result = words.find(pair, 0, found.end)
    if (!readable || left < 0 || right < 0 || result < 0) cursor.fail('a merge of words in the vocabulary')
    triples.push(left, right, result)
  })
  return new Merges(triples)
}
