/**
 * @module
 * One golden prompt, live: the reference backend against PyTorch. All of them: `node test/parity/parity.ts`.
 */
import { referenceBackend } from '@sparsedge/engine/backends/reference/index'
import { expect, it } from 'vitest'
import { comparePrompt, promptGoldens } from './prompts.ts'
import { openShipped, packTokenizer } from './shipped.ts'

it('answers as PyTorch does: logits to 1e-3, the same 64 greedy tokens', async () => {
  const shipped = await openShipped()
  const prompts = await promptGoldens(shipped.manifest.config.vocab)
  expect(prompts.length).toBeGreaterThanOrEqual(8)
  const live = prompts.find(({ name }) => name === 'chat: a short fact')
  if (!live) throw new Error('the golden prompt is gone')
  expect(live.logits.size).toBeGreaterThan(6000)

  const tokenizer = await packTokenizer(shipped)
  expect(
    tokenizer.encode('<|im_start|>user\nWhat is the capital of Italy?<|im_end|>\n<|im_start|>assistant\n'),
  ).toEqual(live.ids)
  const { difference, agreeing } = await comparePrompt(await referenceBackend()(shipped), live)
  expect(difference).toBeLessThan(1e-3)
  expect(agreeing).toBe(64)
})
