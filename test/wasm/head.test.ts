/**
 * The head of two planes: every row is scored with the first, only those near the best with both. A tiny model whose
 * last norm is four times as loud as usual has rows on either side of that line.
 */

import { wasmBackend } from '@sparsedge/engine/backends/wasm/index'
import type { WeightSource } from '@sparsedge/engine/model/weights'
import { referenceBackend } from '@sparsedge/engine/reference'
import { memoryStore } from '@sparsedge/engine/store/memory'
import { pack } from '@sparsedge/weights-tool/pack'
import { expect, it } from 'vitest'
import { tinySource } from '../fixtures/tiny.ts'
import { tinyTokenizer } from '../fixtures/tiny-tokenizer.ts'
import { logitsOf, MODULES, tinyTokens } from './wasm.ts'

const LOUDNESS = 4

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
