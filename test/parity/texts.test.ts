/**
 * @module
 * The WASM backend (int8 activations, int8 KV) against the reference, token by token over fixed texts and chats. The full
 * divergence, by text: `node test/parity/kl.ts`.
 */
import { wasmBackend } from '@sparsedge/engine/backends/wasm/index'
import { expect, it } from 'vitest'
import { openShipped, packTokenizer, wasmModules } from './shipped.ts'
import { compareText, mean, textGoldens } from './texts.ts'

it('expects what the reference expects: mean divergence below 6e-3', async () => {
  const shipped = await openShipped()
  const texts = await textGoldens()
  const tokenizer = await packTokenizer(shipped)
  const backend = await wasmBackend({ modules: await wasmModules() })(shipped)
  const divergences: number[] = []
  let agreeing = 0
  for (const text of texts) {
    expect(tokenizer.encode(tokenizer.decode(text.ids))).toEqual(text.ids)
    const result = await compareText(backend, text)
    divergences.push(...result.divergences)
    agreeing += result.agreeing
  }
  expect(divergences.length).toBeGreaterThanOrEqual(512)
  expect(mean(divergences)).toBeLessThan(6e-3)
  // Also catches a golden of another pack, however alike the two may be.
  expect(agreeing / divergences.length).toBeGreaterThan(0.9)
})
