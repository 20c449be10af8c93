import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Tokenizer } from '@huggingface/tokenizers'
import { ropeFrequencies } from '@sparsedge/engine/model/rope'
import { tensorNames } from '@sparsedge/engine/model/weights'
import { createTokenizer } from '@sparsedge/engine/text/tokenizer'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import {
  bool,
  f32,
  f32Bytes,
  type GgufTensor,
  type GgufValue,
  ggufBytes,
  ggufMetadata,
  ggufTensors,
  string,
  strings,
  TINY_ROPE_THETA,
  u32,
} from '../../../test/fixtures/checkpoints.ts'
import { GATES, tinySource } from '../../../test/fixtures/tiny.ts'
import { TINY_CHAT_TEMPLATE, tinyTokenizer } from '../../../test/fixtures/tiny-tokenizer.ts'
import type { Checkpoint, ImportOptions } from './checkpoint.ts'
import { openCheckpoint } from './open.ts'

const source = tinySource({ gate: GATES.all, expertUnits: 64, tiedHead: false })

let directory: string
let tensors: GgufTensor[]
beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'gguf-'))
  tensors = await ggufTensors(source)
})
afterAll(() => rm(directory, { recursive: true }))

type Metadata = Record<string, GgufValue | undefined>

/** Writes the tiny model with some of its metadata and tensors changed; undefined takes a key away. */
async function file(changes: Metadata = {}, change = (list: GgufTensor[]) => list): Promise<string> {
  const metadata: Record<string, GgufValue> = {}
  for (const [key, value] of Object.entries({ ...ggufMetadata(source.config), ...changes })) {
    if (value !== undefined) metadata[key] = value
  }
  const path = join(directory, `${Math.random()}.gguf`)
  await writeFile(path, ggufBytes(metadata, change(tensors)))
  return path
}

async function opened<T>(path: string, use: (c: Checkpoint) => Promise<T> | T, options: ImportOptions = {}) {
  const checkpoint = await openCheckpoint(path, options)
  try {
    return await use(checkpoint)
  } finally {
    await checkpoint.close()
  }
}

describe('a GGUF file', () => {
  it('gives the model that it was made from', async () => {
    await opened(await file(), async ({ weights, text, provenance }) => {
      expect(weights.config).toEqual({
        ...source.config,
        bosToken: 1,
        eosTokens: [2],
        normEps: Math.fround(1e-5),
      })
      for (const name of tensorNames(source.config)) {
        const [found, expected] = [await weights.tensor(name), await source.tensor(name)]
        expect(found.shape).toEqual(expected.shape)
        // The matrices went through half precision.
        const far = found.data.filter(
          (w, i) => Math.abs(w - expected.data[i]) > 2 ** -11 * Math.abs(w) + 1e-7,
        )
        expect(far, name).toHaveLength(0)
      }
      expect(JSON.parse(new TextDecoder().decode(text.tokenizer))).toEqual(tinyTokenizer())
      expect(new TextDecoder().decode(text.chatTemplate)).toBe(TINY_CHAT_TEMPLATE)
      expect(provenance).toEqual({ source: expect.stringContaining('tiny ('), licence: 'apache-2.0' })
    })
  })

  it('without an output matrix has a tied head', async () => {
    const path = await file({}, (list) => list.filter(({ name }) => name !== 'output.weight'))
    await opened(path, ({ weights }) => expect(weights.config.tiedHead).toBe(true))
  })

  it('may scale its rotations in each of the known ways', async () => {
    const divisors = Float32Array.from({ length: 8 }, (_, i) => 1 + i / 4)
    const plain = ropeFrequencies({ theta: TINY_ROPE_THETA, headDim: 16 }).invFreq
    const yarn = { rope_type: 'yarn', factor: 4, original_max_position_embeddings: 64 } as const
    const cases: [Metadata, Float32Array, number][] = [
      [{}, plain, 1],
      [
        { 'llama.rope.scaling.type': string('linear'), 'llama.rope.scaling.factor': f32(2) },
        plain.map((f) => f / 2),
        1,
      ],
      [{ 'llama.rope.scale_linear': f32(4) }, plain.map((f) => f / 4), 1],
      [
        {
          'llama.rope.scaling.type': string('yarn'),
          'llama.rope.scaling.factor': f32(4),
          'llama.rope.scaling.original_context_length': u32(64),
        },
        ropeFrequencies({ theta: TINY_ROPE_THETA, headDim: 16, scaling: yarn }).invFreq,
        1 + 0.1 * Math.log(4),
      ],
    ]
    for (const [metadata, invFreq, ropeScale] of cases) {
      await opened(await file(metadata), async ({ weights }) => {
        expect((await weights.tensor('rope.inv_freq')).data).toEqual(invFreq)
        expect(weights.config.ropeScale).toBeCloseTo(ropeScale, 12)
      })
    }
    const factors = { name: 'rope_freqs.weight', shape: [8], type: 0, bytes: f32Bytes(divisors) }
    await opened(await file({}, (list) => [...list, factors]), async ({ weights }) => {
      expect((await weights.tensor('rope.inv_freq')).data).toEqual(plain.map((f, i) => f / divisors[i]))
    })
  })

  it('splits into as many experts as it is told', async () => {
    await opened(
      await file(),
      ({ weights }) => expect(weights.config).toMatchObject({ experts: 8, expertUnits: 32 }),
      {
        experts: 8,
      },
    )
    await expect(openCheckpoint(await file(), { experts: 3 })).rejects.toThrow('choose another --experts')
  })
})

describe("a GGUF file's tokenizer", () => {
  it.each([
    ['smollm', "it's 1234 x", ['Ġ', '1', '2', '3', '4']],
    ['gpt-2', "it's 1234 x", ['Ġ', '1', '2', '3', '4']],
    ['llama-bpe', 'a  b\n\n', ['a', 'Ġ', 'Ġ', 'b', 'Ċ', 'Ċ']],
  ])('%s becomes one that the tokenizer library takes', async (pre, text, tokens) => {
    await opened(await file({ 'tokenizer.ggml.pre': string(pre) }), ({ text: { tokenizer } }) => {
      const library = new Tokenizer(JSON.parse(new TextDecoder().decode(tokenizer)), {})
      const encoded = library.encode(`<|im_start|>${text}`)
      expect(encoded.tokens[0]).toBe('<|im_start|>')
      expect(encoded.tokens).toEqual(expect.arrayContaining(tokens))
      expect(library.decode(encoded.ids.slice(1))).toBe(text)
    })
  })

  it('puts a token before every text where the file says so, or llama.cpp takes it for granted', async () => {
    const key = 'tokenizer.ggml.add_bos_token'
    const pre = 'tokenizer.ggml.pre'
    const cases: [Metadata, number[]][] = [
      [{ [key]: bool(false) }, []],
      [{ [key]: undefined }, []],
      [{ [key]: bool(true) }, [1]],
      [{ [key]: undefined, [pre]: string('llama-bpe') }, [1]],
      [{ [key]: bool(false), [pre]: string('llama-bpe') }, []],
      [{ [key]: bool(true), 'tokenizer.ggml.bos_token_id': undefined }, []],
    ]
    for (const [metadata, beginning] of cases) {
      await opened(await file(metadata), ({ text: { tokenizer }, weights }) => {
        expect(createTokenizer(tokenizer, weights.config.vocab).beginning).toEqual(beginning)
      })
    }
  })

  it('of another kind is asked for, and taken', async () => {
    const path = await file({ 'tokenizer.ggml.model': string('llama'), 'tokenizer.ggml.merges': undefined })
    await expect(openCheckpoint(path)).rejects.toMatchObject({
      code: 'checkpoint_unsupported',
      message: expect.stringContaining('--tokenizer'),
    })
    const tokenizer = join(directory, 'tokenizer.json')
    await writeFile(tokenizer, JSON.stringify(tinyTokenizer()))
    await opened(path, ({ text }) => expect(text.tokenizer.length).toBeGreaterThan(1000), { tokenizer })
  })

  it.each([
    ['a merge of unknown tokens', { 'tokenizer.ggml.merges': strings(['zz top']) }, 'does not belong'],
    ['a merge that was cut off', { 'tokenizer.ggml.merges': strings(['Ġ t', 'h']) }, 'does not belong'],
    ['a token twice', { 'tokenizer.ggml.tokens': strings(['a', 'a']) }, 'lists a token twice'],
  ])('with %s is refused', async (_, changes, message) => {
    await expect(openCheckpoint(await file(changes))).rejects.toMatchObject({
      code: 'checkpoint_malformed',
      message: expect.stringContaining(message),
    })
  })
})

describe('what cannot be read', () => {
  const metadata: [string, Metadata, string, string][] = [
    ['another architecture', { 'general.architecture': string('gpt2') }, 'checkpoint_unsupported', 'gpt2'],
    ['no architecture', { 'general.architecture': undefined }, 'checkpoint_unsupported', 'undefined'],
    ['no layers', { 'llama.block_count': undefined }, 'checkpoint_malformed', 'llama.block_count'],
    [
      'layers that are text',
      { 'llama.block_count': string('3') },
      'checkpoint_malformed',
      'llama.block_count',
    ],
    [
      'heads of absurd size',
      { 'llama.attention.key_length': u32(2 ** 31) },
      'checkpoint_malformed',
      'llama.attention.key_length',
    ],
    ['experts of its own', { 'llama.expert_count': u32(8) }, 'checkpoint_malformed', 'experts of their own'],
    [
      'half-rotated heads',
      { 'llama.rope.dimension_count': u32(8) },
      'checkpoint_unsupported',
      'part of each head',
    ],
    [
      'an unknown scaling',
      { 'llama.rope.scaling.type': string('longrope') },
      'checkpoint_unsupported',
      'longrope',
    ],
    [
      'heads that do not divide',
      { 'llama.attention.head_count_kv': u32(3) },
      'checkpoint_unsupported',
      'kvHeads',
    ],
  ]
  it.each(metadata)('%s', async (_, changes, code, message) => {
    await expect(openCheckpoint(await file(changes))).rejects.toMatchObject({
      code,
      message: expect.stringContaining(message),
    })
  })

  const replaced = (name: string, change: Partial<GgufTensor>) => (list: GgufTensor[]) =>
    list.map((tensor) => (tensor.name === name ? { ...tensor, ...change } : tensor))
  const tables: [string, (list: GgufTensor[]) => GgufTensor[], string, string][] = [
    [
      'a type that is not known',
      replaced('output.weight', { type: 12 }),
      'checkpoint_unsupported',
      'type 12',
    ],
    ['a bias', replaced('output.weight', { name: 'blk.0.attn_q.bias' }), 'checkpoint_unsupported', 'biases'],
    [
      'rows that are no whole blocks',
      replaced('output.weight', { type: 14 }),
      'checkpoint_malformed',
      'no whole number of Q6_K',
    ],
    [
      'an empty tensor',
      replaced('output.weight', { shape: [0, 64] }),
      'checkpoint_malformed',
      'no whole number',
    ],
    ['the same tensor twice', (list) => [...list, list[0]], 'checkpoint_malformed', 'twice'],
    [
      'a tensor that is said to be larger than its bytes',
      replaced('token_embd.weight', { shape: [558, 64] }),
      'checkpoint_malformed',
      'overlaps',
    ],
    [
      'a tensor beyond the end of the file',
      replaced('output.weight', { shape: [2 ** 31, 2 ** 31] }),
      'checkpoint_malformed',
      'is cut off',
    ],
  ]
  it.each(tables)('%s', async (_, change, code, message) => {
    await expect(openCheckpoint(await file({}, change))).rejects.toMatchObject({
      code,
      message: expect.stringContaining(message),
    })
  })

  it('a missing or misshapen tensor, when it is asked for', async () => {
    const without = await file({}, (list) => list.filter(({ name }) => name !== 'output_norm.weight'))
    await opened(without, async ({ weights }) => {
      await expect(weights.tensor('model.norm.weight')).rejects.toThrow('has no tensor output_norm.weight')
      await expect(weights.tensor('model.layers.0.mlp.router.bias')).rejects.toThrow('has no tensor')
    })
    const turned = await file({}, replaced('blk.1.ffn_down.weight', { shape: [256, 64] }))
    await opened(turned, async ({ weights }) => {
      await expect(weights.tensor('model.layers.1.mlp.down_proj.weight')).rejects.toThrow(
        'instead of [64,256]',
      )
    })
  })

  it('a file that is cut off anywhere', async () => {
    const whole = ggufBytes(ggufMetadata(source.config), tensors)
    const path = join(directory, 'short.gguf')
    for (const share of [0, 0.001, 0.01, 0.03, 0.1, 0.5, 0.9, 0.999]) {
      await writeFile(path, whole.subarray(0, Math.floor(share * whole.length)))
      await expect(openCheckpoint(path), `${share}`).rejects.toMatchObject({
        code: expect.stringMatching(/^checkpoint_(malformed|unsupported)$/),
      })
    }
  })

  it('a file of another kind, or none', async () => {
    const path = join(directory, 'other.gguf')
    await writeFile(path, 'PK and then something else')
    await expect(openCheckpoint(path)).rejects.toThrow('is not a readable GGUF file')
    await expect(openCheckpoint(join(directory, 'none.gguf'))).rejects.toThrow('there is no checkpoint at')
  })

  it.each([
    ['tensors', 8, 2n ** 60n],
    ['metadata keys', 16, 2n ** 60n],
  ])('a header that promises 2^60 %s', async (_, at, count) => {
    const bytes = Buffer.from(ggufBytes(ggufMetadata(source.config), tensors))
    bytes.writeBigUInt64LE(count, at)
    const path = join(directory, 'huge.gguf')
    await writeFile(path, bytes)
    await expect(openCheckpoint(path)).rejects.toThrow('is not a readable GGUF file')
  })
})
