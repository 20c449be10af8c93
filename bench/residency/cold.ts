/**
 * @module
 * From nothing to the first token: an engine is made from a store that is far away, and asked for one token.
 */
import { createEngine, GREEDY } from '@sparsedge/engine'
import type { ExpertOptions } from '@sparsedge/engine/request'
import { type Distance, faultyStore } from '@sparsedge/engine/store/faulty'
import { divergence } from '../../test/parity/divergence.ts'
import { ALL, backendWith, config, fixedBytes, openBackend, pack } from './backend.ts'
import { distribution } from './fidelity.ts'
import { promptOf, routedBy, texts } from './traces.ts'

export interface ColdPlan {
  readonly tokens: number
  readonly firstByteMs: number
  readonly bytesPerMs: number
  readonly experts?: ExpertOptions
}

export interface Cold {
  readonly tokens: number
  readonly firstByteMs: number
  readonly policy: ExpertOptions['policy']
  /** Until the first token, from the making of the engine on. */
  readonly ms: number
  readonly bytes: number
  readonly requests: number
  readonly fidelity: number
  /** Bytes that no way of loading could leave out, and milliseconds of the prompt's compute in the last layer. */
  readonly neededBytes: number
  readonly lastLayerMs: number
  /** neededBytes over the line, four round trips and the last layer. */
  readonly boundMs: number
}

/** Divergence of the first token, where a cold prompt made do with what had come in time. */
export interface ColdFidelity {
  readonly maxLatencyMs: number
  readonly kl: number
  readonly fidelity: number
}

export async function measureCold(plan: ColdPlan): Promise<Cold> {
  const { tokens, firstByteMs, bytesPerMs, experts } = plan
  const prompt = await promptOf(tokens)
  const store = faultyStore(pack.store, { seed: 1, firstByteMs, bytesPerMs })
  const request = {
    prompt: { tokens: [...prompt] },
    maxTokens: 1,
    sampling: GREEDY,
    stop: [],
    ...(experts && { experts }),
  }
  const started = performance.now()
  const engine = await createEngine({ store, model: pack.manifest.name, backend: backendWith(ALL) })
  let fidelity = 1
  for await (const event of engine.generate(request)) {
    if (event.type === 'done') fidelity = event.usage.experts.fidelity
  }
  const ms = performance.now() - started
  const { bytes, requests } = store.traffic
  const lastLayerMs = (await warmPrefillMs(prompt)) / config.layers
  const manifestBytes = (await pack.store.manifest(pack.manifest.name)).length
  const neededBytes =
    manifestBytes + fixedBytes(pack.manifest) + (await routedBy(prompt)) * pack.manifest.experts.bytes
  const boundMs = neededBytes / bytesPerMs + 4 * firstByteMs + lastLayerMs
  const policy = experts?.policy ?? 'exact'
  return { tokens, firstByteMs, policy, ms, bytes, requests, fidelity, neededBytes, lastLayerMs, boundMs }
}

/** A prompt with all experts in memory, the second time. */
async function warmPrefillMs(prompt: Int32Array): Promise<number> {
  const backend = await openBackend(ALL, pack.store)
  let elapsed = 0
  for (let i = 0; i < 2; i++) {
    const sequence = backend.open(prompt.length)
    const started = performance.now()
    await backend.step(sequence, prompt)
    elapsed = performance.now() - started
    sequence.close()
  }
  return elapsed
}

/** Every text's beginning as the first prompt of an isolate. */
export async function measureColdFidelity(
  tokens: number,
  distance: Distance,
  maxLatencyMs: number,
): Promise<ColdFidelity> {
  const exact = await openBackend(ALL, pack.store)
  const prompts = (await texts()).map(({ ids }) => ids.subarray(0, tokens))
  let kl = 0
  let fidelity = 0
  for (const prompt of prompts) {
    const truth = exact.open(prompt.length)
    const cold = await openBackend(ALL, faultyStore(pack.store, distance))
    const sequence = cold.open(prompt.length, { policy: 'resident_first', lookahead: true, maxLatencyMs })
    const p = await distribution(exact, truth, prompt)
    kl += divergence(p, await distribution(cold, sequence, prompt)) / prompts.length
    fidelity += sequence.usage.fidelity / prompts.length
    truth.close()
    sequence.close()
  }
  return { maxLatencyMs, kl, fidelity }
}
