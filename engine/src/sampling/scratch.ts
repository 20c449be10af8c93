/**
 * @module
 * The logits that a token is chosen from, and passes over the likely ones among them: a run of {@link PEAK_TOKENS} whose peak lies
 * below what is asked for is not looked into.
 */
import { PEAK_TOKENS } from '../backends/backend.ts'
import { SparsedgeError } from '../errors.ts'
import type { Adjustment } from './adjust.ts'
import { expOf } from './exp.ts'
import type { Xoshiro128 } from './xoshiro.ts'

/** Room for one choice. Choosing is synchronous, so that all requests of an engine share one. */
export class SamplingScratch {
  readonly vocab: number
  /** [vocab]: the logits at hand; not to be written to, for they may be a backend's. */
  logits: Float32Array
  /** [vocab]: a changed copy of the logits, then weights. */
  readonly #own: Float32Array
  /** Tokens of a run. */
  #run: number
  /** [vocab / run]: the largest logit of each run. */
  #peaks: Float32Array
  readonly #ownPeaks: Float32Array
  /** [1]: the peak where all logits are one run. */
  readonly #peak = new Float32Array(1)
  /** [vocab]: candidates; the first `size` are a heap, the likeliest on top, those taken from it stand behind it. */
  readonly #order: Int32Array
  #size = 0

  constructor(vocab: number) {
    this.vocab = vocab
    this.#own = new Float32Array(vocab)
    this.logits = this.#own
    this.#run = PEAK_TOKENS
    this.#ownPeaks = new Float32Array(Math.ceil(vocab / PEAK_TOKENS))
    this.#peaks = this.#ownPeaks
    this.#order = new Int32Array(vocab)
  }

  /**
   * Puts logits at hand.
   *
   * @param peaks theirs; where nobody knows them, all are one run, for finding the peaks of many costs more than it saves
   * @param adjustment what changes a copy of them
   */
  use(logits: Float32Array, peaks: Float32Array | undefined, adjustment: Adjustment): void {
    this.logits = logits
    if (adjustment.active) {
      this.#own.set(logits)
      adjustment.apply(this.#own)
      this.logits = this.#own
    }
    if (!peaks) {
      this.#run = this.vocab
      this.#peaks = this.#peak
      this.#findPeak(0)
      return
    }
    this.#run = PEAK_TOKENS
    this.#peaks = peaks
    if (!adjustment.active) return
    this.#ownPeaks.set(peaks)
    this.#peaks = this.#ownPeaks
    for (const token of adjustment.changed) this.#findPeak(Math.floor(token / PEAK_TOKENS))
  }

  #findPeak(run: number): void {
    this.#peaks[run] = largest(this.logits, run * this.#run, this.#end(run))
  }

  #end(run: number): number {
    return Math.min((run + 1) * this.#run, this.vocab)
  }

  /**
   * The token with the largest logit, the lowest of equals.
   *
   * @throws SparsedgeError `logits_not_finite` if there is a NaN or a positive infinity, or nothing else
   */
  likeliest(): number {
    const top = largest(this.#peaks, 0, this.#peaks.length)
    if (top > Number.NEGATIVE_INFINITY && top < Number.POSITIVE_INFINITY)
      return this.logits.indexOf(top, this.#peaks.indexOf(top) * this.#run)
    throw new SparsedgeError(
      'logits_not_finite',
      `the model gave ${top < 0 ? 'no finite logit' : `a logit of ${top}`}; its weights are damaged, pack it again`,
    )
  }

  /** The likelihood of all tokens whose logit is at least `floor`, relative to one with the logit `top`. */
  massAbove(floor: number, top: number, temperature: number): number {
    const { logits } = this
    const peaks = this.#peaks
    let mass = 0
    for (let run = 0; run < peaks.length; run++) {
      if (peaks[run] < floor) continue
      const end = this.#end(run)
      for (let token = run * this.#run; token < end; token++) {
        const logit = logits[token]
        if (logit >= floor) mass += expOf((logit - top) / temperature)
      }
    }
    return mass
  }

  /** Draws one of all tokens whose logit is at least `floor`. The logits are used up where they are not a backend's. */
  drawAbove(floor: number, likeliest: number, temperature: number, random: Xoshiro128): number {
    const { logits } = this
    const peaks = this.#peaks
    const top = logits[likeliest]
    const weights = this.#own
    let mass = 0
    for (let run = 0; run < peaks.length; run++) {
      if (peaks[run] < floor) continue
      const end = this.#end(run)
      for (let token = run * this.#run; token < end; token++) {
        const logit = logits[token]
        weights[token] = logit >= floor ? expOf((logit - top) / temperature) : 0
        mass += weights[token]
      }
    }
    let left = random.uniform() * mass
    for (let run = 0; run < peaks.length; run++) {
      if (peaks[run] < floor) continue
      const end = this.#end(run)
      for (let token = run * this.#run; token < end; token++) {
        left -= weights[token]
        if (left < 0) return token
      }
    }
    // Rounding ate the last of the mass.
    return likeliest
  }

  /** Makes a heap of all tokens whose logit is at least `floor`. @returns how many they are */
  gather(floor: number): number {
    const { logits } = this
    const peaks = this.#peaks
    let count = 0
    for (let run = 0; run < peaks.length; run++) {
      if (peaks[run] < floor) continue
      const end = this.#end(run)
      for (let token = run * this.#run; token < end; token++) {
        if (logits[token] >= floor) this.#order[count++] = token
      }
    }
    this.#size = count
    for (let at = (count >> 1) - 1; at >= 0; at--) this.#sink(at)
    return count
  }

  /** Takes the likeliest candidate off the heap. */
  take(): number {
    const token = this.#order[0]
    this.#size--
    this.#order[0] = this.#order[this.#size]
    this.#order[this.#size] = token
    this.#sink(0)
    return token
  }

  /** A candidate by its place: where `size` were gathered, the i-th that was taken is at `size - 1 - i`. */
  at(place: number): number {
    return this.#order[place]
  }

  #sink(start: number): void {
    const order = this.#order
    const token = order[start]
    let at = start
    for (;;) {
      let child = 2 * at + 1
      if (child >= this.#size) break
      if (child + 1 < this.#size && this.#before(order[child + 1], order[child])) child++
      if (!this.#before(order[child], token)) break
      order[at] = order[child]
      at = child
    }
    order[at] = token
  }

  /** The likelier comes first; of equals, the lower id. */
  #before(a: number, b: number): boolean {
    const difference = this.logits[a] - this.logits[b]
    return difference > 0 || (difference === 0 && a < b)
  }
}

/** The largest of values[from … to - 1]; NaN if one of them is. */
function largest(values: Float32Array, from: number, to: number): number {
  let top = Number.NEGATIVE_INFINITY
  for (let i = from; i < to; i++) {
    // Also true of a NaN, which must not go unseen.
    if (values[i] <= top) continue
    top = values[i]
    if (!(top < Number.POSITIVE_INFINITY)) break
  }
  return top
}
