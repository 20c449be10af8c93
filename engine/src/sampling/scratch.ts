/**
 * @module
 * The logits that a token is chosen from, and passes over the likely ones among them: a run of {@link RUN_TOKENS} whose peak lies
 * below what is asked for is not looked into.
 */
import { RUN_TOKENS, type Runs } from '../backends/backend.ts'
import { SparsedgeError } from '../errors.ts'
import type { Adjustment } from './adjust.ts'
import { expOf } from './exp.ts'
import type { Xoshiro128 } from './xoshiro.ts'

/** Room for one choice. Choosing is synchronous, so that all requests of an engine share one. */
export class SamplingScratch {
  readonly vocab: number
  /** [vocab]: the logits at hand; not to be written to, for they may be a backend's. */
  logits: Float32Array
  /** [vocab]: a changed copy of the logits. */
  readonly #own: Float32Array
  /** Of the logits at hand; of the peaks there is one for all where nobody gave them. */
  #runs: Runs
  readonly #ownRuns: Runs
  readonly #oneRun: Runs
  /** The likeliest token, where all are one run. */
  #likeliest = 0
  /** [vocab]: candidates; the first `size` are a heap, the likeliest on top, those taken from it stand behind it. */
  readonly #order: Int32Array
  #size = 0

  constructor(vocab: number) {
    const count = Math.ceil(vocab / RUN_TOKENS)
    const masses = new Float64Array(count)
    const weigh = (floor: number, top: number, temperature: number) => this.#weigh(floor, top, temperature)
    this.vocab = vocab
    this.#own = new Float32Array(vocab)
    this.logits = this.#own
    this.#ownRuns = { peaks: new Float32Array(count), masses, weigh }
    this.#oneRun = { peaks: new Float32Array(1), masses, weigh }
    this.#runs = this.#oneRun
    this.#order = new Int32Array(vocab)
  }

  /**
   * Puts logits at hand.
   *
   * @param runs theirs; where nobody knows the peaks, all are one run, for finding many costs more than it saves
   * @param adjustment what changes a copy of them
   */
  use(logits: Float32Array, runs: Runs | undefined, adjustment: Adjustment): void {
    this.logits = logits
    this.#runs = runs ?? this.#oneRun
    if (adjustment.active) {
      this.#own.set(logits)
      adjustment.apply(this.#own)
      this.logits = this.#own
    }
    if (!runs) this.#likeliest = this.#findPeak(0)
    else if (adjustment.active) {
      this.#runs = this.#ownRuns
      this.#runs.peaks.set(runs.peaks)
      for (const token of adjustment.changed) this.#findPeak(Math.floor(token / RUN_TOKENS))
      if (Number.isNaN(runs.peaks[0])) this.#runs.peaks[0] = Number.NaN
    }
  }

  /** Tokens that a peak is the largest of. */
  get #length(): number {
    return this.#runs === this.#oneRun ? this.vocab : RUN_TOKENS
  }

  /** @returns the token that has it */
  #findPeak(run: number): number {
    const token = this.#likeliestOf(run)
    this.#runs.peaks[run] = this.logits[token]
    return token
  }

  #likeliestOf(run: number): number {
    const start = run * this.#length
    return largest(this.logits, start, Math.min(start + this.#length, this.vocab))
  }

  /**
   * The token with the largest logit, the lowest of equals.
   *
   * @throws SparsedgeError `logits_not_finite` if there is a NaN or a positive infinity, or nothing else
   */
  likeliest(): number {
    const { peaks } = this.#runs
    const run = largest(peaks, 0, peaks.length)
    const top = peaks[run]
    if (top > Number.NEGATIVE_INFINITY && top < Number.POSITIVE_INFINITY)
      return this.#runs === this.#oneRun ? this.#likeliest : this.#likeliestOf(run)
    throw new SparsedgeError(
      'logits_not_finite',
      `the model gave ${top < 0 ? 'no finite logit' : `a logit of ${top}`}; its weights are damaged, pack it again`,
    )
  }

  /** The likelihood of all tokens whose logit is at least `floor`, relative to one with the logit `top`. */
  massAbove(floor: number, top: number, temperature: number): number {
    const { masses, weigh } = this.#runs
    weigh(floor, top, temperature)
    return masses[masses.length - 1]
  }

  /** {@link Runs.weigh}, for logits of which a backend knows no more. */
  #weigh(floor: number, top: number, temperature: number): void {
    const { logits } = this
    const { peaks, masses } = this.#runs
    const known = peaks.length === masses.length
    let mass = 0
    for (let run = 0; run < masses.length; run++) {
      if (!known || peaks[run] >= floor) {
        const end = Math.min((run + 1) * RUN_TOKENS, this.vocab)
        for (let token = run * RUN_TOKENS; token < end; token++) {
          const logit = logits[token]
          if (logit >= floor) mass += expOf((logit - top) / temperature)
        }
      }
      masses[run] = mass
    }
  }

  /** Draws one of all tokens whose logit is at least `floor`. */
  drawAbove(floor: number, likeliest: number, temperature: number, random: Xoshiro128): number {
    const { logits } = this
    const { masses } = this.#runs
    const top = logits[likeliest]
    const drawn = random.uniform() * this.massAbove(floor, top, temperature)
    let run = 0
    // Strictly: what weighs nothing is never drawn, not even by a draw of 0.
    while (run < masses.length && masses[run] <= drawn) run++
    let mass = run > 0 ? masses[run - 1] : 0
    const end = Math.min((run + 1) * RUN_TOKENS, this.vocab)
    for (let token = run * RUN_TOKENS; token < end; token++) {
      if (logits[token] >= floor) mass += expOf((logits[token] - top) / temperature)
      if (mass > drawn) return token
    }
    // Rounding ate the last of the mass.
    return likeliest
  }

  /** Makes a heap of all tokens whose logit is at least `floor`. @returns how many they are */
  gather(floor: number): number {
    const { logits } = this
    const { peaks } = this.#runs
    const length = this.#length
    let count = 0
    for (let run = 0; run < peaks.length; run++) {
      if (peaks[run] < floor) continue
      const end = Math.min((run + 1) * length, this.vocab)
      for (let token = run * length; token < end; token++) {
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

/**
 * Where the largest of values[from … to - 1] is, the first of equals; where a NaN is, if there is one. A place, not the value:
 * V8 gives a number that is no integer an object of its own.
 */
function largest(values: Float32Array, from: number, to: number): number {
  let place = from
  let top = Number.NEGATIVE_INFINITY
  for (let i = from; i < to; i++) {
    // Also true of a NaN, which must not go unseen.
    if (values[i] <= top) continue
    top = values[i]
    place = i
    if (!(top < Number.POSITIVE_INFINITY)) break
  }
  return place
}
