/**
 * The WASM backend against the reference on tiny packs of every kind: int8 activations and an int8 cache keep the two
 * a little apart, so logits are compared as distributions.
 */
import { referenceBackend } from '@sparsedge/engine/reference'
import { describe, expect, it } from 'vitest'
import { GATES, type TinyPackOptions, tinyPack } from '../fixtures/tiny.ts'
import { divergence, logitsOf, MODULES, tinyBackend, tinyTokens } from './wasm.ts'

const VARIANTS: Record<string, TinyPackOptions> = {
  ...Object.fromEntries(Object.entries(GATES).map(([name, gate]) => [`gate ${name}`, { gate }])),
  'a shared expert': { sharedUnits: 64, gate: GATES.softmaxTopK },
  'a head of its own': { tiedHead: false },
  'everything q8': { sharedUnits: 32, layouts: { attention: 'q8', experts: 'q8', embedding: 'q8' } },
  'a second plane for some rows': { layouts: { fineRows: 96 } },
  'the same and a head of its own': { tiedHead: false, layouts: { fineRows: 96 } },
  'everything q4': { layouts: { embedding: 'q4' } },
  'one key head for six': { heads: 6, kvHeads: 1, headDim: 80, hidden: 96 },
  'a key head for each': { heads: 2, kvHeads: 2, headDim: 96 },
  'heads of 128, experts of 96': { heads: 2, kvHeads: 1, headDim: 128, experts: 6, expertUnits: 96 },
  'heads of 64, hidden 160': { heads: 3, kvHeads: 3, headDim: 64, hidden: 160 },
  'one layer': { layers: 1 },
  'scaled rotations': { ropeScale: 1.2 },
}

// 70 tokens cross two page borders.
const tokens = tinyTokens(70)

describe.each(Object.entries(VARIANTS))('a tiny model with %s', (_, options) => {
  it('has the reference’s distribution after every token, and uses about as many experts', async () => {
    const pack = await tinyPack(options)
    const reference = await referenceBackend()(pack)
    const wasm = await tinyBackend(pack)
    const expected = reference.open(tokens.length)
    const actual = wasm.open(tokens.length)
    let sum = 0
    for (let i = 0; i < tokens.length; i++) {
      const token = tokens.subarray(i, i + 1)
      sum += divergence(await reference.step(expected, token), await wasm.step(actual, token))
    }
    expect(sum / tokens.length).toBeLessThan(6e-3)
    expect(Math.abs(actual.usage.activeShare - expected.usage.activeShare)).toBeLessThan(0.01)
    expect(actual.usage.possible).toBe(expected.usage.possible)
  })

  it('gives the same bits in both builds and however the tokens are cut', async () => {
    const pack = await tinyPack(options)
    const backends = await Promise.all(
      Object.values(MODULES).map((modules) => tinyBackend(pack, { modules })),
    )
    const expected = await logitsOf(backends[0], tokens)
    for (const backend of backends) {
      for (const sizes of [[70], [1, 69], [33, 31, 6], [2, 3, 5, 60], new Array(70).fill(1)]) {
        expect(await logitsOf(backend, tokens, sizes)).toEqual(expected)
      }
    }
  })
})

it('names the build that it runs', async () => {
  const pack = await tinyPack()
  const names = await Promise.all(
    Object.values(MODULES).map(async (modules) => (await tinyBackend(pack, { modules })).name),
  )
  expect(names).toEqual(['wasm-plain', 'wasm-relaxed'])
})

it('takes prompts of several chunks', async () => {
  const backend = await tinyBackend(await tinyPack(), { contextTokens: 512 })
  const prompt = tinyTokens(300)
  const expected = await logitsOf(backend, prompt, [128, 128, 44])
  expect(await logitsOf(backend, prompt)).toEqual(expected)
  expect(await logitsOf(backend, prompt, [299, 1])).toEqual(expected)
})
