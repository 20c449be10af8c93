/**
 * @module
 * From logits to a token. Greedy is exact; where tokens are drawn, the seed fixes every draw, in every runtime.
 */
import type { Runs } from '../backends/backend.ts'
import type { SamplingParams } from '../request.ts'
import { Adjustment } from './adjust.ts'
import { expOf } from './exp.ts'
import type { SamplingScratch } from './scratch.ts'
import { Xoshiro128 } from './xoshiro.ts'

/** Chooses the tokens of one request. */
export class Sampler {
  readonly #params: SamplingParams
  readonly #adjustment: Adjustment
  readonly #random: Xoshiro128
  readonly #scratch: SamplingScratch

  /** @throws SparsedgeError `invalid_request` for a bias of a token that does not exist */
  constructor(params: SamplingParams, prompt: readonly number[], scratch: SamplingScratch) {
    this.#params = params
    this.#adjustment = new Adjustment(params, prompt, scratch.vocab)
    this.#random = new Xoshiro128(params.seed)
    this.#scratch = scratch
  }

  /**
   * Chooses the next token: penalties and biases; then, unless greedy, temperature, min_p, top_k and top_p, each over what
   * the one before left.
   *
   * @param logits [vocab], left as they are
   * @param runs what a backend knows of them
   * @throws SparsedgeError `logits_not_finite` if there is a NaN among them, or nothing to choose
   */
  next(logits: Float32Array, runs?: Runs): number {
    this.#scratch.use(logits, runs, this.#adjustment)
    const likeliest = this.#scratch.likeliest()
    const token = this.#params.temperature === 0 ? likeliest : this.#draw(likeliest)
    this.#adjustment.add(token)
    return token
  }

  #draw(likeliest: number): number {
    const { temperature, topK, topP, minP } = this.#params
    const scratch = this.#scratch
    const top = scratch.logits[likeliest]
    const floor = top + temperature * Math.log(minP)
    if (topK === 0 && topP >= 1) return scratch.drawAbove(floor, likeliest, temperature, this.#random)

    let total = topK === 0 ? scratch.massAbove(floor, top, temperature) : 0
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
      if (topK === 0 && this.#scratch.massAbove(least, top, temperature) < mass) continue
      const count = this.#scratch.gather(least)
      if (count >= topK) return count
    }
    return this.#scratch.gather(floor)
  }

  /** The likelihood of a token, relative to the likeliest. */
  #weight(token: number, top: number): number {
    return expOf((this.#scratch.logits[token] - top) / this.#params.temperature)
  }
}
