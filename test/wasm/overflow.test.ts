/**
 * Finite weights whose products leave the floats: whatever overflows, wherever, must come out as logits that are not
 * numbers, which the sampler refuses. Zeros would come out as a token.
 */
import type { GateConfig } from '@sparsedge/engine/model/config'
import type { WeightSource } from '@sparsedge/engine/model/weights'
import { GREEDY } from '@sparsedge/engine/request'
import { Sampler } from '@sparsedge/engine/sampling/sampler'
import { SamplingScratch } from '@sparsedge/engine/sampling/scratch'
import { memoryStore } from '@sparsedge/engine/store/memory'
import { pack } from '@sparsedge/weights-tool/pack'
import { describe, expect, it } from 'vitest'
import { GATES, tinySource } from '../fixtures/tiny.ts'
import { tinyTokenizer } from '../fixtures/tiny-tokenizer.ts'
import { logitsOf, MODULES, tinyBackend, tinyTokens } from './wasm.ts'

type Change = (data: Float32Array, cols: number) => void
const times =
  (factor: number): Change =>
  (data) => {
    for (let i = 0; i < data.length; i++) data[i] *= factor
  }
/** Rows that are infinity minus infinity for nearly every input. */
const alternate: Change = (data) => {
  for (let i = 0; i < data.length; i++) data[i] = i % 2 ? 3e38 : -3e38
}

async function changedPack(gate: GateConfig, names: RegExp, change: Change) {
  const whole = tinySource({ gate })
  const source: WeightSource = {
    config: whole.config,
    async tensor(wanted) {
      const tensor = await whole.tensor(wanted)
      if (names.test(wanted)) change(tensor.data, tensor.shape[1] ?? 1)
      return tensor
    },
  }
  const store = memoryStore()
  const manifest = await pack(
    source,
    {
      name: 'loud',
      layouts: { embedding: 'q8', attention: 'q8', experts: 'q8' },
      text: { tokenizer: new TextEncoder().encode(JSON.stringify(tinyTokenizer())) },
      provenance: { source: 'random', licence: 'Apache-2.0', tool: 'test' },
    },
    async ({ bytes }) => {
      await store.putShard(bytes)
    },
  )
  return { manifest, store, source }
}

const OVERFLOWS: [string, GateConfig, RegExp, Change][] = [
  ['the residual stream squared, by attention', GATES.clamped, /1.*o_proj/, times(1e20)],
  ['the residual stream, by attention', GATES.clamped, /1.*o_proj/, times(1e38)],
  ['the residual stream squared, by the experts', GATES.clamped, /1.*up_proj/, times(1e20)],
  ['the residual stream, by the experts', GATES.clamped, /1.*down_proj/, times(1e38)],
  ['an embedding squared', GATES.clamped, /embed/, times(1e20)],
  ['a query times a key', GATES.clamped, /1.*[qk]_proj/, times(1e30)],
  ['values', GATES.clamped, /1.*v_proj/, times(1e38)],
  ['the activation', GATES.clamped, /1.*up_proj/, times(1e38)],
  ['a clamped gate', GATES.clamped, /1.*router/, alternate],
  ['a look-ahead gate', GATES.clampedLookAhead, /1.*router/, alternate],
  ['a softmax gate', GATES.softmaxTopK, /1.*router/, alternate],
  ['a softmax gate, renormalised', GATES.renormalisedTopK, /1.*router/, alternate],
  ['a softmax gate with a threshold', GATES.softmaxThreshold, /1.*router/, alternate],
  ['the last norm', GATES.clamped, /model.norm/, times(1e38)],
]

describe.each(OVERFLOWS)('where %s overflows', (_, gate, names, change) => {
  it.each(Object.entries(MODULES))('no logit passes for a number, %s', async (_, modules) => {
    const backend = await tinyBackend(await changedPack(gate, names, change), { modules })
    const logits = await logitsOf(backend, tinyTokens(8))
    expect(logits.filter(Number.isFinite)).toEqual(new Float32Array(0))
    const sampler = new Sampler(GREEDY, [], new SamplingScratch(logits.length))
    for (const runs of [undefined, backend.runs]) {
      expect(() => sampler.next(logits, runs)).toThrow(expect.objectContaining({ code: 'logits_not_finite' }))
    }
  })
})
