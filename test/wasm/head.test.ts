/**
 * The head of two planes: every row is scored with the first, only those near the best with both. A tiny model whose
 * last norm is four times as loud as usual has rows on either side of that line. And the second plane that ends early,
 * in the head and where tokens are looked up.
 */

import { RUN_TOKENS } from '@sparsedge/engine/backends/backend'
import { wasmBackend } from '@sparsedge/engine/backends/wasm/index'
import type { WeightSource } from '@sparsedge/engine/model/weights'
import { referenceBackend } from '@sparsedge/engine/reference'
import { expOf } from '@sparsedge/engine/sampling/exp'
import { memoryStore } from '@sparsedge/engine/store/memory'
import { pack } from '@sparsedge/weights-tool/pack'
import { describe, expect, it } from 'vitest'
import { tinyPack, tinySource } from '../fixtures/tiny.ts'
import { TINY_VOCAB, tinyTokenizer } from '../fixtures/tiny-tokenizer.ts'
import { logitsOf, MODULES, tinyBackend, tinyTokens } from './wasm.ts'

const LOUDNESS = 4
const FINE_ROWS = 96

async function loudPack(embedding: 'q4' | 'q8') {
  const quiet = tinySource({ layers: 1, hidden: 256 })
  const source: WeightSource = {
    config: quiet.config,
    async tensor(name) {
      const tensor = await quiet.tensor(name)
      if (name !== 'model.norm.weight') return tensor
      return { ...tensor, data: tensor.data.map((weight) => weight * LOUDNESS) }
    },
  }
  const store = memoryStore()
  const manifest = await pack(
    source,
    {
      name: 'loud',
      layouts: { embedding, attention: 'q8', experts: 'q8' },
      text: { tokenizer: new TextEncoder().encode(JSON.stringify(tinyTokenizer())) },
      provenance: { source: 'random', licence: 'Apache-2.0', tool: 'test' },
    },
    async ({ bytes }) => {
      await store.putShard(bytes)
    },
  )
  return { manifest, store }
}

/** Mean error of the logits, in nats, of the rows near the best and of those far below it. */
async function errors(embedding: 'q4' | 'q8') {
  const loud = await loudPack(embedding)
  const reference = await referenceBackend()(loud)
  const wasm = await wasmBackend({ modules: MODULES['plain and relaxed'], memoryBytes: 32 << 20 })(loud)
  const near: number[] = []
  const far: number[] = []
  for (let length = 1; length <= 12; length++) {
    const expected = await logitsOf(reference, tinyTokens(length))
    const actual = await logitsOf(wasm, tinyTokens(length))
    const best = expected.reduce((a, b) => Math.max(a, b))
    for (let tile = 0; tile < expected.length; tile += 16) {
      const rows = expected.subarray(tile, tile + 16)
      const bestOfTile = rows.reduce((a, b) => Math.max(a, b))
      for (const [i, logit] of rows.entries()) {
        const error = Math.abs(actual[tile + i] - logit)
        if (logit > best - 8) near.push(error)
        else if (bestOfTile < best - 12) far.push(error)
      }
    }
  }
  const mean = (list: number[]) => list.reduce((a, b) => a + b, 0) / list.length
  return { near: mean(near), far: mean(far), counts: [near.length, far.length] }
}

it('scores the rows near the best with both planes, and the others with the first', async () => {
  const two = await errors('q8')
  expect(Math.min(...two.counts)).toBeGreaterThan(50)
  expect(two.far).toBeGreaterThan(3 * two.near)
})

it('scores all rows alike where the head has one plane', async () => {
  const one = await errors('q4')
  expect(one.far).toBeLessThan(1.5 * one.near)
})

it.each(Object.entries(MODULES))('knows peaks and masses of what it gives, %s', async (_, modules) => {
  // Planes read for all rows, for some, and for none; the last run is shorter than the others.
  expect(TINY_VOCAB % RUN_TOKENS).not.toBe(0)
  for (const layouts of [{}, { fineRows: FINE_ROWS }, { embedding: 'q4' }] as const) {
    const backend = await tinyBackend(await tinyPack({ layouts }), { modules })
    const sequence = backend.open(20)
    for (const token of tinyTokens(20)) {
      const logits = await backend.step(sequence, Int32Array.of(token))
      const runs = Array.from({ length: Math.ceil(TINY_VOCAB / RUN_TOKENS) }, (_, run) =>
        logits.subarray(run * RUN_TOKENS, (run + 1) * RUN_TOKENS),
      )
      const peaks = runs.map((run) => Math.max(...run))
      expect(backend.runs?.peaks).toEqual(Float32Array.from(peaks))
      const top = Math.max(...peaks)
      for (const temperature of [1, 0.8, 0.01, 1e-300]) {
        for (const floor of [Number.NEGATIVE_INFINITY, top - temperature, top]) {
          let mass = 0
          const masses = runs.map((run) => {
            for (const logit of run) if (logit >= floor) mass += expOf((logit - top) / temperature)
            return mass
          })
          backend.runs?.weigh(floor, top, temperature)
          expect(backend.runs?.masses).toEqual(Float64Array.from(masses))
        }
      }
    }
  }
})

describe.each([
  ['the embedding', true],
  ['its own', false],
])('a second plane that ends early, the head being %s', (_, tiedHead) => {
  it.each(Object.entries(MODULES))('adds to its rows and to no others, %s', async (_, modules) => {
    const backendOf = async (layouts: { embedding?: 'q4'; fineRows?: number }) =>
      tinyBackend(await tinyPack({ tiedHead, layouts }), { modules })
    const some = await backendOf({ fineRows: FINE_ROWS })
    const q8 = await backendOf({})
    const q4 = await backendOf({ embedding: 'q4' })
    // A prompt from one side of the border is looked up alike in both packs, and rows of that side are scored alike.
    const fine = Int32Array.from({ length: FINE_ROWS }, (_, token) => token)
    const coarse = Int32Array.from({ length: TINY_VOCAB - FINE_ROWS }, (_, i) => FINE_ROWS + i)
    const below = async (backend: typeof some) => (await logitsOf(backend, fine)).subarray(0, FINE_ROWS)
    const beyond = async (backend: typeof some) => (await logitsOf(backend, coarse)).subarray(FINE_ROWS)
    expect(await below(some)).toEqual(await below(q8))
    expect(await below(some)).not.toEqual(await below(q4))
    expect(await beyond(some)).toEqual(await beyond(q4))
    expect(await beyond(some)).not.toEqual(await beyond(q8))
  })

  it('leaves the likeliest token right on either side of the border', async () => {
    const pack = await tinyPack({ tiedHead, layouts: { fineRows: FINE_ROWS } })
    const [reference, wasm] = [await referenceBackend()(pack), await tinyBackend(pack)]
    const tokens = tinyTokens(120)
    const [expected, actual] = [reference.open(tokens.length), wasm.open(tokens.length)]
    const winners = { below: 0, beyond: 0 }
    for (let i = 0; i < tokens.length; i++) {
      const token = tokens.subarray(i, i + 1)
      const logits = await reference.step(expected, token)
      const [best, second] = Array.from(logits.keys()).sort((a, b) => logits[b] - logits[a])
      const found = await wasm.step(actual, token)
      // Int8 activations may swap near ties.
      if (logits[best] - logits[second] < 0.25) continue
      expect(found.indexOf(Math.max(...found))).toBe(best)
      winners[best < FINE_ROWS ? 'below' : 'beyond']++
    }
    expect(winners.below).toBeGreaterThan(20)
    expect(winners.beyond).toBeGreaterThan(20)
  })
})
