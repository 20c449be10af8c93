/**
 * @module
 * What `resident_first` changes: texts read with an arena that holds a part of the experts, beside the same texts with all
 * of them. The next token's distribution tells.
 */
import { setImmediate } from 'node:timers/promises'
import type { Backend, Sequence } from '@sparsedge/engine/backends/backend'
import type { ExpertOptions } from '@sparsedge/engine/request'
import { type Distance, faultyStore } from '@sparsedge/engine/store/faulty'
import { argmax, divergence, logProbabilities } from '../../test/parity/divergence.ts'
import { ALL, openBackend, pack } from './backend.ts'
import { sumsOf } from './speed.ts'
import { texts } from './traces.ts'

/** Tokens of each text that are read as its prompt. */
const PREFIX = 32

export interface Fidelity {
  readonly slots: number
  /** Tokens that were judged. */
  readonly tokens: number
  /** KL divergence from the exact model in nats, mean over tokens. */
  readonly kl: number
  /** Share of tokens whose likeliest successor is the exact model's. */
  readonly agreement: number
  /** Perplexity of the texts themselves, and that of the exact model. */
  readonly perplexity: number
  readonly exactPerplexity: number
  /** Share of the gates' choices that ran. */
  readonly fidelity: number
  /** Bytes fetched a token. */
  readonly bytes: number
  /** Milliseconds waited a token, once the prompt was read. */
  readonly waitMs: number
}

export async function measureFidelity(slots: number, distance: Distance, tokens: number): Promise<Fidelity> {
  const sums = { kl: 0, agreeing: 0, loss: 0, exactLoss: 0, chosen: 0, honoured: 0, bytes: 0, waitMs: 0 }
  let count = 0
  const exact = await openBackend(ALL, pack.store)
  // One isolate reads all texts: it is cold once.
  const partial = await openBackend(slots, faultyStore(pack.store, distance))
  const experts: ExpertOptions = { policy: 'resident_first', lookahead: true }
  const all = await texts()
  for (const text of all) {
    const ids = text.ids.subarray(0, PREFIX + tokens)
    const truth = exact.open(ids.length)
    const sequence = partial.open(ids.length, experts)
    let p = await distribution(exact, truth, ids.subarray(0, PREFIX))
    let q = await distribution(partial, sequence, ids.subarray(0, PREFIX))
    const before = sumsOf(sequence.usage)
    for (let i = PREFIX; i < ids.length; i++) {
      p = await distribution(exact, truth, ids.subarray(i, i + 1))
      q = await distribution(partial, sequence, ids.subarray(i, i + 1))
      sums.kl += divergence(p, q)
      sums.agreeing += argmax(p) === argmax(q) ? 1 : 0
      if (i + 1 < ids.length) {
        sums.loss -= q[ids[i + 1]]
        sums.exactLoss -= p[ids[i + 1]]
      }
      count += 1
    }
    const after = sumsOf(sequence.usage)
    for (const field of ['chosen', 'honoured', 'bytes', 'waitMs'] as const) {
      sums[field] += after[field] - before[field]
    }
    truth.close()
    sequence.close()
  }
  // After a text's last token there is none to be scored.
  const scored = count - all.length
  return {
    slots,
    tokens: count,
    kl: sums.kl / count,
    agreement: sums.agreeing / count,
    perplexity: Math.exp(sums.loss / scored),
    exactPerplexity: Math.exp(sums.exactLoss / scored),
    fidelity: sums.honoured / sums.chosen,
    bytes: sums.bytes / count,
    waitMs: sums.waitMs / count,
  }
}

/** Log-probabilities of the next token, [vocab]. */
export async function distribution(
  backend: Backend,
  sequence: Sequence,
  tokens: Int32Array,
): Promise<Float64Array> {
  const logits = logProbabilities(await backend.step(sequence, tokens))
  // As between the steps of every request: what has arrived gets its turn.
  await setImmediate()
  return logits
}
