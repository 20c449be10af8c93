/**
 * @module
 * Byte-level byte-pair encoding (Sennrich et al., arXiv 1508.07909; the bytes are GPT-2's). A word of n bytes is encoded
 * in O(n log n), so that a prompt without a space is no attack.
 */
import type { ByteString } from './byte-alphabet.ts'
import { type Merges, readMerges, readVocabulary, type Vocabulary } from './byte-tables.ts'
import type { JsonCursor } from './json-cursor.ts'

/** Words up to this many bytes share one scratch; longer ones bring their own and give it back. */
const SHARED_SCRATCH = 4096
/** Keys of the merge queue are rank · 2³² + position: lowest rank first, then leftmost. */
const POSITIONS = 2 ** 32

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
