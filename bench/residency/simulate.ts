/**
 * @module
 * A trace through the engine's own table of slots, without the bytes: what hits, and what would have to be fetched. Every
 * miss is fetched when it is met; look-ahead would change when, not what.
 */
import { Slots } from '@sparsedge/engine/residency/slots'
import { ALL, config } from './backend.ts'
import { POLICIES, type Policy } from './policies.ts'
import type { Step, Trace } from './traces.ts'

export interface Outcome {
  /** Of the steps of single tokens. */
  readonly hits: number
  readonly misses: number
}

export function simulate(trace: Trace, policy: Policy, slots: number): Outcome {
  const forecast = POLICIES[policy](trace)
  const table = new Slots(new Uint8Array(slots), 1, slots, ALL, forecast)
  let misses = 0
  let acquired = 0
  const run = (step: Step) => {
    for (const [layer, { routed, uses, tokens }] of step.entries()) {
      const row = layer * config.experts
      forecast.visit(layer, tokens)
      for (const [i, expert] of routed.entries()) {
        forecast.use(row + expert, uses[i])
        table.pin(row + expert)
      }
      for (const expert of routed) {
        if (table.of[row + expert] >= 0) continue
        misses += 1
        table.publish(row + expert, table.take())
      }
      for (const expert of routed) table.unpin(row + expert)
      acquired += routed.length
    }
  }
  for (const step of trace.prompt) run(step)
  misses = 0
  acquired = 0
  for (const step of trace.decode) run(step)
  return { hits: acquired - misses, misses }
}
