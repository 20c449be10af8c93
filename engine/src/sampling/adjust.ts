/**
 * @module
 * What a request changes in the logits before a token is chosen: penalties for what was said already, and biases.
 */
import { SparsedgeError } from '../errors.ts'
import type { SamplingParams } from '../request.ts'

export class Adjustment {
  readonly #params: SamplingParams
  /** Tokens of the prompt and the output, each once, and how often each was generated. */
  readonly #tokens: number[] = []
  readonly #generated: number[] = []
  /** Token → its index in the two lists. */
  readonly #index = new Map<number, number>()
  /** The tokens whose logits {@link Adjustment.apply} changes; some are named twice. */
  readonly changed: number[] = []
  /** Whether {@link Adjustment.apply} changes anything, for a request that asks for nothing must cost nothing. */
  readonly active: boolean

  /**
   * @param vocab ids are below this
   * @throws SparsedgeError `invalid_request` for a bias of a token that does not exist
   */
  constructor(params: SamplingParams, prompt: readonly number[], vocab: number) {
    this.#params = params
    const { repetitionPenalty, presencePenalty, frequencyPenalty, logitBias } = params
    for (const token of logitBias.keys()) {
      if (Number.isInteger(token) && token >= 0 && token < vocab) continue
      throw new SparsedgeError(
        'invalid_request',
        `there is no token ${token}; biases are for ids below ${vocab}`,
      )
    }
    this.active =
      repetitionPenalty !== 1 || presencePenalty !== 0 || frequencyPenalty !== 0 || logitBias.size > 0
    if (this.active) for (const token of prompt) this.#entry(token)
    this.changed.push(...logitBias.keys())
  }

  /** A token was generated. */
  add(token: number): void {
    if (this.active) this.#generated[this.#entry(token)]++
  }

  /**
   * Repetition penalty (Keskar et al., arXiv 1909.05858), then presence and frequency penalty (as OpenAI defines them),
   * then biases, so that a ban holds whatever was said.
   *
   * @param logits [vocab], changed in place
   */
  apply(logits: Float32Array): void {
    const { repetitionPenalty, presencePenalty, frequencyPenalty, logitBias } = this.#params
    for (let i = 0; i < this.#tokens.length; i++) {
      const token = this.#tokens[i]
      const times = this.#generated[i]
      const logit = logits[token]
      const repeated = logit > 0 ? logit / repetitionPenalty : logit * repetitionPenalty
      logits[token] = repeated - frequencyPenalty * times - (times > 0 ? presencePenalty : 0)
    }
    for (const [token, bias] of logitBias) logits[token] += bias
  }

  #entry(token: number): number {
    let entry = this.#index.get(token)
    if (entry === undefined) {
      entry = this.#tokens.push(token) - 1
      this.#generated.push(0)
      this.#index.set(token, entry)
      this.changed.push(token)
    }
    return entry
  }
}
