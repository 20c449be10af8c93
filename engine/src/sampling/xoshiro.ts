/**
 * @module
 * xoshiro128** 1.1 (Blackman and Vigna, arXiv 1805.01407): random numbers that a seed fixes in every runtime.
 */

/** The sequence of one seed. Any integer is a seed; they are told apart by their lowest 64 bits. */
export class Xoshiro128 {
  /** [4] */
  readonly #state = new Uint32Array(4)

  constructor(seed: number) {
    // SplitMix64, as its authors advise: close seeds must not give close states, nor any seed the state of all zeros.
    let mix = BigInt.asUintN(64, BigInt(seed))
    for (let i = 0; i < 4; i += 2) {
      mix = BigInt.asUintN(64, mix + 0x9e3779b97f4a7c15n)
      let word = mix
      word = BigInt.asUintN(64, (word ^ (word >> 30n)) * 0xbf58476d1ce4e5b9n)
      word = BigInt.asUintN(64, (word ^ (word >> 27n)) * 0x94d049bb133111ebn)
      word ^= word >> 31n
      this.#state[i] = Number(word & 0xffffffffn)
      this.#state[i + 1] = Number(word >> 32n)
    }
  }

  /** @returns a whole number from 0 to 2³² - 1, each as likely */
  next(): number {
    const s = this.#state
    const result = Math.imul(rotateLeft(Math.imul(s[1], 5), 7), 9) >>> 0
    const t = s[1] << 9
    s[2] ^= s[0]
    s[3] ^= s[1]
    s[1] ^= s[2]
    s[0] ^= s[3]
    s[2] ^= t
    s[3] = rotateLeft(s[3], 11)
    return result
  }

  /** @returns a number from 0 up to, not including, 1 */
  uniform(): number {
    return this.next() / 2 ** 32
  }
}

function rotateLeft(word: number, bits: number): number {
  return (word << bits) | (word >>> (32 - bits))
}
