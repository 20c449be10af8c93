/**
 * @module
 * From logits to a token. Greedy is exact; where tokens are drawn, the seed fixes every draw, in every runtime.
 */
import { SparsedgeError } from '../errors.ts'
import type { SamplingParams } from '../request.ts'
import { Adjustment } from './adjust.ts'
import { expOf } from './exp.ts'
import { Xoshiro128 } from './xoshiro.ts'

/** Room for one choice. Choosing is synchronous, so that all requests of an engine share one. */
export class SamplingScratch {
  /** [vocab] */
  readonly logits: Float32Array
  /** [vocab]: candidates; the first `size` are a heap, the likeliest on top, those taken from it stand behind it. */
  readonly #order: Int32Array
  #size = 0

  constructor(vocab: number) {
    this.logits = new Float32Array(vocab)
    this.#order = new Int32Array(vocab)
  }

  /** Makes a heap of all tokens whose logit is at least `floor`. @returns how many they are */
  gather(floor: number): number {
    const { logits } = this
    let count = 0
    for (let token = 0; token < logits.length; token++) {
      if (logits[token] >= floor) this.#order[count++] = token
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

/** Chooses the tokens of one request. */
export class Sampler {
  readonly #params: SamplingParams
  readonly #adjustment: Adjustment
  readonly #random: Xoshiro128
  readonly #scratch: SamplingScratch

  /** @throws SparsedgeError `invalid_request` for a bias of a token that does not exist */
  constructor(params: SamplingParams, prompt: readonly number[], scratch: SamplingScratch) {
    this.#params = params
    this.#adjustment = new Adjustment(params, prompt, scratch.logits.length)
    this.#random = new Xoshiro128(params.seed)
    this.#scratch = scratch
  }

  /**
   * Chooses the next token: penalties and biases; then, unless greedy, temperature, min_p, top_k and top_p, each over what
   * the one before left.
   *
   * @param logits [vocab], left as they are
   * @throws SparsedgeError `logits_not_finite` if there is a NaN among them, or nothing to choose
   */
  next(logits: Float32Array): number {
    const greedy = this.#params.temperature === 0
    let adjusted = logits
    if (!greedy || this.#adjustment.active) {
      adjusted = this.#scratch.logits
      adjusted.set(logits)
      if (this.#adjustment.active) this.#adjustment.apply(adjusted)
    }
    const likeliest = argmax(adjusted)
    const token = greedy ? likeliest : this.#draw(adjusted[likeliest])
    this.#adjustment.add(token)
    return token
  }

  /** Draws by the logits in the scratch, of which `top` is the largest. */
  #draw(top: number): number {
    const { temperature, topK, topP, minP } = this.#params
    const floor = top + temperature * Math.log(minP)
    if (topK === 0 && topP >= 1) return this.#drawAbove(floor, top)

    const scratch = this.#scratch
    let total = topK === 0 ? this.#massAbove(floor, top) : 0
    const count = this.#gatherEnough(floor, top, topP * total)
    const limit = topK === 0 ? count : Math.min(topK, count)
    if (topK > 0) for (let i = 0; i < limit; i++) total += this.#weight(scratch.take(), top)

    let mass = 0
    let kept = 0
    do mass += this.#weight(topK === 0 ? scratch.take() : scratch.at(count - 1 - kept), top)
    while (++kept < limit && mass < topP * total)

    let left = this.#random.uniform() * mass
    for (let i = 0; i < kept; i++) {
      const token = scratch.at(count - 1 - i)
      left -= this.#weight(token, top)
      // Strictly: what weighs nothing is never drawn, not even by a draw of 0.
      if (left < 0) return token
    }
    return scratch.at(count - 1)
  }

  /** Draws one of all tokens whose logit is at least `floor`. The logits are used up. */
  #drawAbove(floor: number, top: number): number {
    const weights = this.#scratch.logits
    const { temperature } = this.#params
    let mass = 0
    for (let token = 0; token < weights.length; token++) {
      const logit = weights[token]
      weights[token] = logit >= floor ? expOf((logit - top) / temperature) : 0
      mass += weights[token]
    }
    let left = this.#random.uniform() * mass
    for (let token = 0; token < weights.length; token++) {
      left -= weights[token]
      if (left < 0) return token
    }
    // Rounding ate the last of the mass.
    return argmax(weights)
  }

  /**
   * Gathers the likeliest candidates, enough for top_k or top_p: a heap of the whole vocabulary would cost more than all
   * the rest, and a few hundred tokens nearly always do.
   *
   * @param mass what top_p needs, where there is no top_k
   * @returns how many were gathered
   */
  #gatherEnough(floor: number, top: number, mass: number): number {
    const { temperature, topK } = this.#params
    for (let depth = 4; depth <= 64; depth *= 2) {
      const least = top - depth * temperature
      if (least <= floor) break
      if (topK === 0 && this.#massAbove(least, top) < mass) continue
      const count = this.#scratch.gather(least)
      if (count >= topK) return count
    }
    return this.#scratch.gather(floor)
  }

  #massAbove(floor: number, top: number): number {
    const { logits } = this.#scratch
    const { temperature } = this.#params
    let mass = 0
    for (let token = 0; token < logits.length; token++) {
      const logit = logits[token]
      if (logit >= floor) mass += expOf((logit - top) / temperature)
    }
    return mass
  }

  /** The likelihood of a token, relative to the likeliest. */
  #weight(token: number, top: number): number {
    return expOf((this.#scratch.logits[token] - top) / this.#params.temperature)
  }
}

/** The index of the largest value, the lowest of equals. */
function argmax(logits: Float32Array): number {
  let best = -1
  let top = Number.NEGATIVE_INFINITY
  for (let i = 0; i < logits.length; i++) {
    // Also true of a NaN, which must not go unseen.
    if (logits[i] <= top) continue
    top = logits[i]
    best = i
    if (!(top < Number.POSITIVE_INFINITY)) break
  }
  if (best >= 0 && top < Number.POSITIVE_INFINITY) return best
  throw new SparsedgeError(
    'logits_not_finite',
    `the model gave ${best < 0 ? 'no finite logit' : `a logit of ${top}`}; its weights are damaged, pack it again`,
  )
}
