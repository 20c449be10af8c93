/**
 * @module
 * The shipped stack answers today as it did when somebody read its answers. A change of the kernels' arithmetic or of the
 * pack may change them: then `node test/goldens/transcripts.ts` writes them anew, to be read again.
 */
import type { Engine } from '@sparsedge/engine'
import { beforeAll, describe, expect, it } from 'vitest'
import { golden } from './shipped.ts'
import { answer, shippedEngine, Transcripts } from './transcripts.ts'

const transcripts = await golden('transcripts.json', Transcripts)

describe('a chat with the shipped model', () => {
  let engine: Engine
  beforeAll(async () => {
    engine = await shippedEngine()
  })

  it.each(transcripts)('$messages.0.content', async ({ messages, answer: text, finishReason, tokens }) => {
    expect(text.length).toBeGreaterThan(20)
    expect(await answer(engine, messages)).toEqual({ answer: text, finishReason, tokens })
  })
})
