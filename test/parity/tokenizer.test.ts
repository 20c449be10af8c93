/**
 * @module
 * The engine's tokenizer against Hugging Face's own (Rust), on the shipped model's vocabulary; goldens/tokenizer.py wrote
 * what is expected.
 */
import { readFile } from 'node:fs/promises'
import { createTokenizer } from '@sparsedge/engine/text/tokenizer'
import { beforeAll, describe, expect, it } from 'vitest'
import { z } from 'zod'

const MODEL = new URL('../../models/smollm2-135m-dsmoe/', import.meta.url)
const VOCAB = 49152

const ids = z.array(z.int())
const golden = z
  .object({
    texts: z.array(z.string()),
    kinds: z.array(
      z.object({
        name: z.string(),
        pre_tokenizer: z.unknown(),
        ignore_merges: z.boolean(),
        ids: z.array(ids),
      }),
    ),
    decoded: z.array(z.object({ ids, text: z.string(), with_control: z.string() })),
  })
  .parse(JSON.parse(await readFile(new URL('../goldens/tokenizer.json', import.meta.url), 'utf8')))

const file = z.looseObject({ model: z.looseObject({}) })
let shipped: z.infer<typeof file>

beforeAll(async () => {
  const manifest = z
    .object({ text: z.object({ tokenizer: z.object({ hash: z.string() }) }) })
    .parse(JSON.parse(await readFile(new URL('manifest.json', MODEL), 'utf8')))
  const bytes = await readFile(new URL(`shards/${manifest.text.tokenizer.hash}`, MODEL), 'utf8')
  shipped = file.parse(JSON.parse(bytes))
})

/** The shipped tokenizer, some of its settings replaced. */
function tokenizerWith(settings: { pre_tokenizer?: unknown; model?: object }) {
  const json = { ...shipped, ...settings, model: { ...shipped.model, ...settings.model } }
  return createTokenizer(new TextEncoder().encode(JSON.stringify(json)), VOCAB)
}

describe('ids', () => {
  it.each(golden.kinds)('$name', ({ pre_tokenizer, ignore_merges, ids }) => {
    const tokenizer = tokenizerWith({ pre_tokenizer, model: { ignore_merges } })
    expect(tokenizer.kind).toBe('compact')
    for (const [i, text] of golden.texts.entries()) expect(tokenizer.encode(text), text).toEqual(ids[i])
  })
})

describe('text', () => {
  it('of tokens in any order, control tokens shown', () => {
    const tokenizer = tokenizerWith({})
    for (const { ids, with_control } of golden.decoded) expect(tokenizer.decode(ids)).toBe(with_control)
  })

  it('of tokens one by one, control tokens left out', () => {
    const tokenizer = tokenizerWith({})
    for (const { ids, text } of golden.decoded) {
      const detokenizer = tokenizer.detokenizer(false)
      expect(ids.map((id) => detokenizer.push(id)).join('') + detokenizer.end()).toBe(text)
    }
  })

  it('comes back from its ids', () => {
    const tokenizer = tokenizerWith({})
    // U+10FFFF and its like hold bytes that this vocabulary lacks.
    const whole = golden.texts.filter((text) => !/\p{Noncharacter_Code_Point}/u.test(text))
    for (const text of whole) expect(tokenizer.decode(tokenizer.encode(text))).toBe(text)
  })
})
