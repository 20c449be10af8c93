/**
 * @module
 * What gates that came back from the GPU say: which experts a run should have had, and what it cost its request.
 */
import type { ModelConfig } from '../../model/config.ts'
import type { Account } from '../../residency/residency.ts'
import type { Experts } from './experts.ts'

export class Routing {
  readonly #config: ModelConfig
  readonly #experts: Experts

  constructor(config: ModelConfig, experts: Experts) {
    this.#config = config
    this.#experts = experts
  }

  /**
   * Keys (layer · experts + expert) of the experts that were routed and that a run did without. Some may have come since,
   * too late for it: a warm-up's, or another request's.
   *
   * @param gates g, [layers, tokens, experts]; empty where every expert is always on
   * @param present what {@link Experts.present} said before the run was queued
   */
  missing(gates: Float32Array, tokens: number, present: Uint8Array | undefined): number[] {
    if (!present) return []
    const { layers, experts } = this.#config
    const missing: number[] = []
    for (let key = 0; key < layers * experts; key++) {
      if (present[key] === 0 && this.#uses(gates, key, tokens) > 0) missing.push(key)
    }
    return missing
  }

  /** Books a run's experts. @param fetched keys of those that the run had to wait for */
  account({ usage }: Account, gates: Float32Array, tokens: number, fetched?: ReadonlySet<number>): void {
    const { layers, experts } = this.#config
    this.#experts.visit(tokens)
    usage.possible += tokens * layers * experts
    for (let layer = 0; layer < layers; layer++) {
      for (let key = layer * experts; key < (layer + 1) * experts; key++) {
        const uses = this.#uses(gates, key, tokens)
        if (uses === 0) continue
        this.#experts.use(key, uses)
        usage.chosen += uses
        const has = this.#experts.has(key)
        if (has) {
          usage.honoured += uses
          usage.layerActivated[layer] += uses
        }
        if (has && !fetched?.has(key)) usage.layerHits[layer] += 1
        else usage.layerMisses[layer] += 1
      }
    }
  }

  /** Tokens that routed an expert. */
  #uses(gates: Float32Array, key: number, tokens: number): number {
    const { experts, gate } = this.#config
    if (gate.kind === 'all') return tokens
    const layer = Math.floor(key / experts)
    let uses = 0
    for (let token = 0; token < tokens; token++) {
      if (gates[(layer * tokens + token) * experts + (key % experts)] > 0) uses += 1
    }
    return uses
  }
}
