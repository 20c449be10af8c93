/**
 * @module
 * A backend against the reference's expectations after every token of test/goldens/texts.json.
 */
import type { Backend } from '@sparsedge/engine/backends/backend'
import { z } from 'zod'
import { argmax, logProbabilities, partialDivergence } from './divergence.ts'
import { golden, goldenBytes } from './shipped.ts'

export interface TextGolden {
  readonly name: string
  readonly ids: readonly number[]
  /** The likeliest next tokens after each, likeliest first, and their log-probabilities. */
  readonly expected: readonly { readonly tokens: Uint16Array; readonly p: Float32Array }[]
}

const File = z.object({
  top: z.int().positive(),
  texts: z.array(z.object({ name: z.string(), ids: z.array(z.int()) })),
})

/** What test/goldens/texts.ts wrote. */
export async function textGoldens(): Promise<TextGolden[]> {
  const { top, texts } = await golden('texts.golden.json', File)
  const bytes = await goldenBytes('texts.golden.bin')
  let at = 0
  const position = () => {
    const start = at
    at += 6 * top
    return {
      tokens: Uint16Array.from({ length: top }, (_, i) => bytes.getUint16(start + 2 * i, true)),
      p: Float32Array.from({ length: top }, (_, i) => bytes.getFloat32(start + 2 * top + 4 * i, true)),
    }
  }
  return texts.map(({ name, ids }) => ({ name, ids, expected: ids.map(position) }))
}

export interface TextResult {
  /** Divergence from the reference after each token, in nats. */
  readonly divergences: number[]
  /** Positions at which the likeliest token is the same. */
  readonly agreeing: number
}

/** Runs a text token by token. */
export async function compareText(backend: Backend, { ids, expected }: TextGolden): Promise<TextResult> {
  const sequence = backend.open(ids.length)
  const divergences: number[] = []
  let agreeing = 0
  for (const [i, { tokens, p }] of expected.entries()) {
    const logits = await backend.step(sequence, Int32Array.of(ids[i]))
    divergences.push(partialDivergence(tokens, p, logProbabilities(logits)))
    if (argmax(logits) === tokens[0]) agreeing++
  }
  sequence.close()
  return { divergences, agreeing }
}

export function mean(numbers: readonly number[]): number {
  return numbers.reduce((sum, n) => sum + n, 0) / numbers.length
}
