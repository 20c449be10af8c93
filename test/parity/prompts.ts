/**
 * @module
 * A backend against PyTorch on the prompts of test/goldens/prompts.json.
 */
import type { Backend } from '@sparsedge/engine/backends/backend'

import { z } from 'zod'
import { argmax } from './divergence.ts'
import { golden, goldenBytes } from './shipped.ts'

export interface PromptGolden {
  readonly name: string
  readonly ids: readonly number[]
  readonly greedy: readonly number[]
  /** Token → its logit after the prompt, of the 50 largest and of every 8th token. */
  readonly logits: ReadonlyMap<number, number>
}

const File = z.object({
  stride: z.int().positive(),
  prompts: z.array(
    z.object({
      name: z.string(),
      ids: z.array(z.int()),
      greedy: z.array(z.int()).length(64),
      top: z.array(z.tuple([z.int(), z.number()])).length(50),
    }),
  ),
})

/** What test/goldens/prompts.py wrote. */
export async function promptGoldens(vocab: number): Promise<PromptGolden[]> {
  const { stride, prompts } = await golden('prompts.golden.json', File)
  const sampled = await goldenBytes('prompts.golden.bin')
  const perPrompt = Math.ceil(vocab / stride)
  return prompts.map(({ name, ids, greedy, top }, p) => {
    const logits = new Map(top)
    for (let i = 0; i < perPrompt; i++) {
      logits.set(i * stride, sampled.getFloat32(4 * (p * perPrompt + i), true))
    }
    return { name, ids, greedy, logits }
  })
}

export interface PromptResult {
  /** Largest |logit - golden logit| after the prompt. */
  readonly difference: number
  /** Leading tokens of the greedy continuation that agree. */
  readonly agreeing: number
}

/** Runs a prompt and its greedy continuation. */
export async function comparePrompt(backend: Backend, prompt: PromptGolden): Promise<PromptResult> {
  const sequence = backend.open(prompt.ids.length + prompt.greedy.length)
  let logits = await backend.step(sequence, Int32Array.from(prompt.ids))
  let difference = 0
  for (const [token, logit] of prompt.logits) {
    difference = Math.max(difference, Math.abs(logits[token] - logit))
  }
  let agreeing = 0
  for (const expected of prompt.greedy) {
    if (argmax(logits) !== expected) break
    agreeing++
    logits = await backend.step(sequence, Int32Array.of(expected))
  }
  sequence.close()
  return { difference, agreeing }
}
