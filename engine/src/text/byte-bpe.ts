/**
 * @module
 * Byte-level byte-pair encoding (Sennrich et al., arXiv 1508.07909; the bytes are GPT-2's) on typed arrays. A library's
 * maps of strings take ten times the heap, which one isolate does not have beside a model. A word of n bytes is encoded in
 * O(n log n), so that a prompt without a space is no attack.
 */
import { type ByteString, readByteString } from './byte-alphabet.ts'
import type { JsonCursor } from './json-cursor.ts'

/** Words up to this many bytes share one scratch; longer ones bring their own and give it back. */
const SHARED_SCRATCH = 4096
/** Keys of the merge queue are rank · 2³² + position: lowest rank first, then leftmost. */
const POSITIONS = 2 ** 32

const COLON = 0x3a
const OPEN_BRACKET = 0x5b
const CLOSE_BRACKET = 0x5d
const COMMA = 0x2c

/** The words of a vocabulary as byte strings, by id and by content. */
class Vocabulary {
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
class Merges {
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

/** Room for the symbols of one word and its queue of merges. */
class Scratch {
  /** UTF-8 of the word. */
  readonly bytes: Uint8Array
  /** Id of the symbol that begins at each position, or -1 once it was merged into the one before. */
  readonly symbols: Int32Array
  readonly before: Int32Array
  readonly after: Int32Array
  /** Binary heap. Every merge takes a key out and puts two in at most, and there are fewer merges than positions. */
  readonly queue: Float64Array
  queued = 0

  constructor(size: number) {
    this.bytes = new Uint8Array(size)
    this.symbols = new Int32Array(size)
    this.before = new Int32Array(size)
    this.after = new Int32Array(size)
    this.queue = new Float64Array(2 * size)
  }

  push(key: number): void {
    const { queue } = this
    let at = this.queued++
    while (at > 0) {
      const parent = (at - 1) >> 1
      if (queue[parent] <= key) break
      queue[at] = queue[parent]
      at = parent
    }
    queue[at] = key
  }

  pop(): number {
    const { queue } = this
    const top = queue[0]
    const last = queue[--this.queued]
    let at = 0
    for (;;) {
      let child = 2 * at + 1
      if (child >= this.queued) break
      if (child + 1 < this.queued && queue[child + 1] < queue[child]) child++
      if (queue[child] >= last) break
      queue[at] = queue[child]
      at = child
    }
    queue[at] = last
    return top
  }
}

export class ByteBpe {
  readonly #vocabulary: Vocabulary
  readonly #merges: Merges
  /** [256]: the id of each byte, or -1 where the vocabulary lacks it. */
  readonly #byteIds = new Int32Array(256)
  /** A word that is in the vocabulary is not cut, whatever the merges say (Llama 3). */
  readonly #wholeWords: boolean
  readonly #shared = new Scratch(SHARED_SCRATCH)
  readonly #utf8 = new TextEncoder()
  /** Bytes of the longest word. */
  readonly longest: number

  private constructor(vocabulary: Vocabulary, merges: Merges, wholeWords: boolean) {
    this.#vocabulary = vocabulary
    this.#merges = merges
    this.#wholeWords = wholeWords
    this.longest = vocabulary.longest
    for (let byte = 0; byte < 256; byte++) this.#byteIds[byte] = vocabulary.find(Uint8Array.of(byte), 0, 1)
  }

  /**
   * Builds the model in one pass over the bytes of tokenizer.json.
   *
   * @param vocab the cursor at `model.vocab`, an object of words and ids
   * @param merges the cursor at `model.merges`, an array of `"left right"` or `["left", "right"]`
   * @param ids ids are below this
   * @param wholeWords whether a word of the vocabulary is not cut, whatever the merges say (`ignore_merges`)
   * @param isAdded whether an id is an added token's, whose word need not be of the byte alphabet
   * @returns undefined where a word is not made of the byte alphabet, so that this is not a byte-level vocabulary
   * @throws SparsedgeError `manifest_malformed` for JSON of another shape, an id out of range or used twice, a merge of
   * words that are not there
   */
  static read(
    vocab: JsonCursor,
    merges: JsonCursor,
    ids: number,
    wholeWords: boolean,
    isAdded: (id: number) => boolean,
  ): ByteBpe | undefined {
    const found: ByteString = { end: 0, gap: -1, readable: false }
    const words = readVocabulary(vocab, ids, isAdded, found)
    return words && new ByteBpe(words, readMerges(merges, words, found), wholeWords)
  }

  /** Appends the ids of a word, which the pre-tokeniser cut out of a text. Bytes that the vocabulary lacks are left out, as
   * in the reference. */
  encode(word: string, into: number[]): void {
    const room = 3 * word.length
    const scratch = room <= SHARED_SCRATCH ? this.#shared : new Scratch(room)
    const length = this.#utf8Bytes(word, scratch.bytes)
    if (this.#wholeWords) {
      const id = this.#vocabulary.find(scratch.bytes, 0, length)
      if (id >= 0) {
        into.push(id)
        return
      }
    }
    const count = this.#symbols(scratch, length)
    if (count === 0) return
    this.#merge(scratch, count)
    for (let at = 0; at >= 0; at = scratch.after[at]) into.push(scratch.symbols[at])
  }

  /** The bytes that an id stands for; none where the vocabulary has no such id. A view, not to be written to. */
  word(id: number): Uint8Array {
    return this.#vocabulary.word(id)
  }

  #utf8Bytes(word: string, out: Uint8Array): number {
    for (let i = 0; i < word.length; i++) {
      const unit = word.charCodeAt(i)
      if (unit >= 0x80) return this.#utf8.encodeInto(word, out).written
      out[i] = unit
    }
    return word.length
  }

  /** One symbol per byte. @returns how many there are */
  #symbols(scratch: Scratch, length: number): number {
    let count = 0
    for (let i = 0; i < length; i++) {
      const id = this.#byteIds[scratch.bytes[i]]
      if (id >= 0) scratch.symbols[count++] = id
    }
    for (let i = 0; i < count; i++) {
      scratch.before[i] = i - 1
      scratch.after[i] = i + 1 < count ? i + 1 : -1
    }
    return count
  }

  /** Merges the pair of the lowest rank, the leftmost first, until no pair is left that can be. */
  #merge(scratch: Scratch, count: number): void {
    const { symbols, before, after } = scratch
    const { left, right, result } = this.#merges
    scratch.queued = 0
    for (let at = 0; at + 1 < count; at++) this.#enqueue(scratch, at, at + 1)
    while (scratch.queued > 0) {
      const key = scratch.pop()
      const rank = Math.floor(key / POSITIONS)
      const at = key % POSITIONS
      const next = after[at]
      // A key outlives its pair when a neighbour was merged first.
      if (next < 0 || symbols[at] !== left[rank] || symbols[next] !== right[rank]) continue
      symbols[at] = result[rank]
      symbols[next] = -1
      after[at] = after[next]
      if (after[at] >= 0) {
        before[after[at]] = at
        this.#enqueue(scratch, at, after[at])
      }
      after[next] = -1
      if (before[at] >= 0) this.#enqueue(scratch, before[at], at)
    }
  }

  #enqueue(scratch: Scratch, at: number, next: number): void {
    const rank = this.#merges.rank(scratch.symbols[at], scratch.symbols[next])
    if (rank >= 0) scratch.push(rank * POSITIONS + at)
  }
}

function readVocabulary(
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

function readMerges(cursor: JsonCursor, words: Vocabulary, found: ByteString): Merges {
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
