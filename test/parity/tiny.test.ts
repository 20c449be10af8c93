/**
 * @module
 * The reference backend against PyTorch on tiny packs: every kind of gate, shared expert, heads and layouts.
 */
import { referenceOf } from '@sparsedge/engine/backends/reference/index'
import { packWeights } from '@sparsedge/engine/pack/weights'
import { expect, it } from 'vitest'
import { z } from 'zod'
import { tinyPack } from '../fixtures/tiny.ts'
import { argmax } from './divergence.ts'
import { golden } from './shipped.ts'
import { TINY_CASES, TINY_TOKENS } from './tiny-cases.ts'

const Golden = z.object({
  name: z.string(),
  /** After every token. */
  likeliest: z.array(z.int()),
  /** After the last. */
  logits: z.array(z.number()),
})
const goldens = new Map(
  (await golden('tiny.golden.json', z.array(Golden))).map((entry) => [entry.name, entry]),
)

it.each(TINY_CASES)('gives the logits that PyTorch gives: $name', async (options) => {
  const expected = goldens.get(options.name)
  if (!expected) throw new Error('run test/goldens/tiny.py')
  const { manifest, store } = await tinyPack(options)
  const backend = await referenceOf(packWeights(manifest, store))
  const { logits } = backend.trace(backend.open(TINY_TOKENS.length), Int32Array.from(TINY_TOKENS))

  const { vocab } = manifest.config
  const at = (t: number) => logits.subarray(t * vocab, (t + 1) * vocab)
  expect(TINY_TOKENS.map((_, t) => argmax(at(t)))).toEqual(expected.likeliest)
  expect(expected.logits.length).toBe(vocab)
  const last = at(TINY_TOKENS.length - 1)
  const difference = Math.max(...expected.logits.map((logit, i) => Math.abs(last[i] - logit)))
  expect(difference).toBeLessThan(5e-5)
})
