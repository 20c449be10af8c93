import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { ropeFrequencies } from '@sparsedge/engine/model/rope'
import { tensorNames, type WeightSource } from '@sparsedge/engine/model/weights'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { TINY_ROPE_THETA, writeHuggingFace } from '../../../test/fixtures/checkpoints.ts'
import { GATES, tinySource } from '../../../test/fixtures/tiny.ts'
import { TINY_CHAT_TEMPLATE, tinyTokenizer } from '../../../test/fixtures/tiny-tokenizer.ts'
import type { Checkpoint, ImportOptions } from './checkpoint.ts'
import { openCheckpoint } from './open.ts'

let directory: string
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'huggingface-'))
})
afterEach(() => rm(directory, { recursive: true }))

/** Opens the directory, uses it, closes it. */
async function opened<T>(
  use: (checkpoint: Checkpoint) => Promise<T> | T,
  options: ImportOptions = {},
): Promise<T> {
  const checkpoint = await openCheckpoint(directory, options)
  try {
    return await use(checkpoint)
  } finally {
    await checkpoint.close()
  }
}

async function expectSame(found: WeightSource, expected: WeightSource): Promise<void> {
  expect(tensorNames(found.config)).toEqual(tensorNames(expected.config))
  for (const name of tensorNames(expected.config)) {
    expect(await found.tensor(name), name).toEqual(await expected.tensor(name))
  }
}

const json = (file: string, value: unknown) => writeFile(join(directory, file), JSON.stringify(value))

const dense = () => tinySource({ gate: GATES.all, expertUnits: 64 })

describe('a dense Llama', () => {
  it.each([1, 3])('of %i files is read whole, and split into experts of 64 units', async (files) => {
    await writeHuggingFace(directory, dense(), { files })
    await opened(async ({ weights, text, provenance }) => {
      expect(weights.config).toEqual(dense().config)
      await expectSame(weights, dense())
      expect(JSON.parse(new TextDecoder().decode(text.tokenizer))).toEqual(tinyTokenizer())
      expect(new TextDecoder().decode(text.chatTemplate)).toBe(TINY_CHAT_TEMPLATE)
      expect(provenance.source).toMatch(/^huggingface-/)
    })
  })

  it('may have a head of its own, half floats, and other experts', async () => {
    const source = tinySource({ gate: GATES.all, expertUnits: 64, tiedHead: false })
    await writeHuggingFace(directory, source, { dtype: 'F16' })
    await opened(
      async ({ weights }) => {
        expect(weights.config).toMatchObject({ tiedHead: false, experts: 8, expertUnits: 32 })
        const { data } = await weights.tensor('lm_head.weight')
        const expected = (await source.tensor('lm_head.weight')).data
        expect(
          data.every((w, i) => Math.abs(w - expected[i]) <= 2 ** -11 * Math.abs(expected[i]) + 1e-7),
        ).toBe(true)
      },
      { experts: 8 },
    )
  })

  it('takes its frequencies from the formula that config.json names', async () => {
    const llama3 = {
      rope_type: 'llama3' as const,
      factor: 8,
      low_freq_factor: 1,
      high_freq_factor: 4,
      original_max_position_embeddings: 64,
    }
    const yarn = { rope_type: 'yarn' as const, factor: 4, original_max_position_embeddings: 64 }
    const cases = [
      [{ rope_scaling: null }, undefined],
      [{ rope_scaling: { type: 'linear', factor: 2 } }, { rope_type: 'linear' as const, factor: 2 }],
      [{ rope_scaling: llama3 }, llama3],
      [{ rope_scaling: yarn }, yarn],
      [{ rope_theta: 7, rope_parameters: { ...yarn, rope_theta: TINY_ROPE_THETA } }, yarn],
    ] as const
    for (const [config, scaling] of cases) {
      await writeHuggingFace(directory, dense(), { config })
      const expected = ropeFrequencies({ theta: TINY_ROPE_THETA, headDim: 16, scaling })
      await opened(async ({ weights }) => {
        expect((await weights.tensor('rope.inv_freq')).data).toEqual(expected.invFreq)
        expect(weights.config.ropeScale).toBe(expected.ropeScale)
      })
    }
  })
})

describe('a DS-MoE checkpoint', () => {
  const moe = () => tinySource({ gate: GATES.softmaxTopK, sharedUnits: 32 })

  it('keeps its experts, gates and shared units', async () => {
    await writeHuggingFace(directory, moe())
    await opened(async ({ weights }) => {
      expect(weights.config).toEqual(moe().config)
      await expectSame(weights, moe())
    })
  })

  it('brings its profile, quality and origin', async () => {
    const profile = [0, 1, 2].map(() => [0.5, 0.25, 1, 0])
    const quality = [{ share: 0.5, text: 'chat', perplexity: 5, kl: 0.3 }]
    const provenance = { source: 'trained', licence: 'Apache-2.0' }
    await writeHuggingFace(directory, moe(), { config: { profile, quality, provenance } })
    await opened((checkpoint) => expect(checkpoint).toMatchObject({ profile, quality, provenance }))
  })

  it.each([
    ['widths that do not add up', { expert_units: 64 }, 'is not intermediate_size'],
    [
      'a gate that cannot select that way',
      { gate: { ...GATES.clamped, selection: { by: 'all' } } },
      'cannot select',
    ],
    ['no gate', { gate: undefined }, 'gate'],
    [
      'offsets for another number of layers',
      { gate: { ...GATES.clamped, offsets: { '0.5': [1] } } },
      'offsets',
    ],
  ])('with %s is refused', async (_, config, message) => {
    await writeHuggingFace(directory, moe(), { config })
    await expect(openCheckpoint(directory)).rejects.toThrow(message)
  })

  it('cannot be split otherwise', async () => {
    await writeHuggingFace(directory, moe())
    await expect(openCheckpoint(directory, { experts: 2 })).rejects.toMatchObject({
      code: 'checkpoint_unsupported',
    })
  })
})

describe('tokens', () => {
  it('end a generation where config.json or generation_config.json says so', async () => {
    await writeHuggingFace(directory, dense(), { config: { eos_token_id: 2 } })
    await json('generation_config.json', { eos_token_id: [2, 0] })
    await opened(({ weights }) => expect(weights.config.eosTokens).toEqual([2, 0]))
  })

  it('called bos_token in templates may be absent', async () => {
    await writeHuggingFace(directory, dense(), { config: { bos_token_id: null } })
    await opened(({ weights }) => expect(weights.config.bosToken).toBeUndefined())
  })
})

describe('text files', () => {
  it('can be replaced by the caller', async () => {
    await writeHuggingFace(directory, dense())
    const tokenizer = join(directory, 'other.json')
    const chatTemplate = join(directory, 'other.jinja')
    await json('other.json', { ...tinyTokenizer(), version: '2.0' })
    await writeFile(chatTemplate, 'other')
    await opened(
      ({ text }) => {
        expect(new TextDecoder().decode(text.tokenizer)).toContain('"version":"2.0"')
        expect(new TextDecoder().decode(text.chatTemplate)).toBe('other')
      },
      { tokenizer, chatTemplate },
    )
  })

  it('know chat_template.jinja and the list of named templates', async () => {
    await writeHuggingFace(directory, dense())
    const named = [
      { name: 'tool_use', template: 'no' },
      { name: 'default', template: 'yes' },
    ]
    await json('tokenizer_config.json', { chat_template: named })
    await opened(({ text }) => expect(new TextDecoder().decode(text.chatTemplate)).toBe('yes'))
    await writeFile(join(directory, 'chat_template.jinja'), 'file')
    await opened(({ text }) => expect(new TextDecoder().decode(text.chatTemplate)).toBe('file'))
  })
})

describe('what cannot be read', () => {
  const refused: [string, Record<string, unknown>, string, string][] = [
    ['another architecture', { model_type: 'gpt2' }, 'checkpoint_unsupported', 'gpt2 model'],
    ['another activation', { hidden_act: 'gelu' }, 'checkpoint_unsupported', 'gelu'],
    ['biases', { attention_bias: true }, 'checkpoint_unsupported', 'biases'],
    [
      'an unknown RoPE scaling',
      { rope_scaling: { type: 'dynamic', factor: 2 } },
      'checkpoint_unsupported',
      'RoPE',
    ],
    ['an FFN of an odd width', { intermediate_size: 250 }, 'checkpoint_unsupported', 'no multiple of 32'],
    [
      'a hidden size that is no multiple of 32',
      { hidden_size: 40 },
      'checkpoint_unsupported',
      'multiples of 32',
    ],
    ['no hidden size', { hidden_size: undefined }, 'checkpoint_malformed', 'hidden_size'],
    ['a negative number of layers', { num_hidden_layers: -1 }, 'checkpoint_malformed', 'num_hidden_layers'],
    ['heads of absurd size', { head_dim: 2 ** 40 }, 'checkpoint_malformed', 'head_dim'],
    ['no epsilon', { rms_norm_eps: 'small' }, 'checkpoint_malformed', 'rms_norm_eps'],
  ]
  it.each(refused)('%s', async (_, config, code, message) => {
    await writeHuggingFace(directory, dense(), { config })
    await expect(openCheckpoint(directory)).rejects.toMatchObject({
      code,
      message: expect.stringContaining(message),
    })
  })

  it.each(['config.json', 'tokenizer.json', 'model.safetensors'])('a directory without %s', async (file) => {
    await writeHuggingFace(directory, dense())
    await rm(join(directory, file))
    await expect(openCheckpoint(directory)).rejects.toMatchObject({
      code: 'checkpoint_malformed',
      message: expect.stringContaining(file),
    })
  })

  it.each(['config.json', 'tokenizer.json', 'tokenizer_config.json'])(
    'a %s that is no JSON',
    async (file) => {
      await writeHuggingFace(directory, dense())
      await writeFile(join(directory, file), '{')
      await expect(openCheckpoint(directory)).rejects.toMatchObject({
        code: 'checkpoint_malformed',
        message: expect.stringContaining(file),
      })
    },
  )

  it('an index that leads out of the directory', async () => {
    await writeHuggingFace(directory, dense(), { files: 2 })
    await json('model.safetensors.index.json', { weight_map: { a: '../../etc/x.safetensors' } })
    await expect(openCheckpoint(directory)).rejects.toThrow('a file beside the index')
  })

  it('an index without one of the tensors, or with a file that is not there', async () => {
    await writeHuggingFace(directory, dense(), { files: 2 })
    await json('model.safetensors.index.json', { weight_map: { a: 'model-00001-of-00002.safetensors' } })
    await opened(async ({ weights }) => {
      await expect(weights.tensor('model.norm.weight')).rejects.toThrow(
        'does not list tensor model.norm.weight',
      )
    })
    await json('model.safetensors.index.json', { weight_map: { a: 'model-00009-of-00002.safetensors' } })
    await expect(openCheckpoint(directory)).rejects.toMatchObject({ code: 'checkpoint_malformed' })
  })

  it('a tensor of another shape than config.json implies', async () => {
    await writeHuggingFace(directory, dense(), { config: { vocab_size: 100 } })
    await opened(async ({ weights }) => {
      await expect(weights.tensor('model.embed_tokens.weight')).rejects.toThrow('should be [100,64]')
      await expect(weights.tensor('model.layers.0.mlp.router.weight')).rejects.toThrow('has no tensor')
    })
  })

  it('a path where nothing is', async () => {
    await expect(openCheckpoint(join(directory, 'nothing'))).rejects.toThrow('there is no checkpoint at')
  })
})
