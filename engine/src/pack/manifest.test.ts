import { describe, expect, it } from 'vitest'
import { GATES, tinyPack } from '../../../test/fixtures/tiny.ts'
import type { ModelConfig } from '../model/config.ts'
import { type Manifest, parseManifest } from './manifest.ts'

const { manifest } = await tinyPack({ sharedUnits: 32, tiedHead: false })
const { vocab, experts } = manifest.config
const bytesOf = (json: unknown) => new TextEncoder().encode(JSON.stringify(json))
const malformed = expect.objectContaining({ code: 'manifest_malformed' })

it('takes what the packer writes', () => {
  expect(parseManifest(bytesOf(manifest))).toEqual(manifest)
})

describe('a configuration that no kernel can serve is refused', () => {
  const cases: [string, Partial<ModelConfig>, RegExp][] = [
    ['more experts than there are', { gate: GATES.softmaxTopK, experts: 1 }, /more experts than there are/],
    ['2^32 + 1 experts', { gate: topK(2 ** 32 + 1) }, /config\.gate\.selection\.k/],
    ['one expert too many', { gate: topK(experts + 1) }, /config\.gate\.selection\.k/],
    ['a threshold that nobody passes', { gate: threshold(experts) }, /config\.gate\.selection\.eps/],
    ['a threshold that is 0 in float32', { gate: threshold(1e-60) }, /config\.gate\.selection\.eps/],
    ['an epsilon that is 0 in float32', { normEps: 1e-60 }, /config\.normEps/],
    ['an epsilon that is infinite in float32', { normEps: 1e300 }, /config\.normEps/],
    ['a rotation that is infinite in float32', { ropeScale: 1e300 }, /config\.ropeScale/],
    ['a rotation that is 0 in float32', { ropeScale: 1e-60 }, /config\.ropeScale/],
    ['heads whose products leave 32 bits', { headDim: 2080 }, /config\.headDim/],
    ['heads of 24', { headDim: 24 }, /config\.headDim/],
    ['layers without end', { layers: 2 ** 40 }, /config\.layers/],
    ['more layers than any model has', { layers: 1025 }, /config\.layers/],
    ['experts beyond their 16 bits', { experts: 65537 }, /config\.experts/],
    ['a context beyond 32 bits', { context: 2 ** 40 }, /config\.context/],
    ['a shared expert beyond 32 bits', { sharedUnits: 2 ** 40 }, /config\.sharedUnits/],
    ['an end token beyond the vocabulary', { eosTokens: [0, vocab] }, /below vocab/],
    ['a begin token beyond the vocabulary', { bosToken: vocab }, /below vocab/],
  ]
  it.each(cases)('%s', (_, config, message) => {
    const parse = () => parseManifest(bytesOf({ ...manifest, config: { ...manifest.config, ...config } }))
    expect(parse).toThrow(malformed)
    expect(parse).toThrow(message)
  })

  function topK(k: number): ModelConfig['gate'] {
    return { ...GATES.softmaxTopK, selection: { by: 'top_k', k } }
  }
  function threshold(eps: number): ModelConfig['gate'] {
    return { ...GATES.softmaxThreshold, selection: { by: 'threshold', eps } }
  }
})

describe('a second plane that ends early is refused', () => {
  const cases: [string, string, number, RegExp][] = [
    ['within a tile', 'embed', 24, /fineRows/],
    ['before its first row', 'embed', 0, /fineRows/],
    ['at its last row', 'head', Math.ceil(vocab / 16) * 16, /head cannot have a second plane/],
    ['beyond 32 bits', 'head', 2 ** 40, /head cannot have a second plane/],
    ['in attention', 'layers.0.attention.qkv', 16, /qkv cannot have a second plane/],
    ['in row scales', 'head.row_scale', 16, /row_scale cannot have a second plane/],
  ]
  it.each(cases)('%s', (_, name, fineRows, message) => {
    const tensors = manifest.trunk.tensors.map((tensor) =>
      tensor.name === name ? { ...tensor, fineRows } : tensor,
    )
    const parse = () => parseManifest(bytesOf({ ...manifest, trunk: { ...manifest.trunk, tensors } }))
    expect(parse).toThrow(malformed)
    expect(parse).toThrow(message)
  })

  it('and taken in the embedding and the head', async () => {
    const some = await tinyPack({ tiedHead: false, layouts: { fineRows: 96 } })
    expect(parseManifest(bytesOf(some.manifest))).toEqual(some.manifest)
  })
})

describe('sizes that cannot be are refused', () => {
  const cases: [string, (manifest: Manifest) => unknown, RegExp][] = [
    ['a tokenizer of 2^50 bytes', ({ text }) => (text.tokenizer.bytes = 2 ** 50), /text\.tokenizer\.bytes/],
    ['a tokenizer of 33 MiB', ({ text }) => (text.tokenizer.bytes = 33 << 20), /text\.tokenizer\.bytes/],
    [
      'a template of 2^50 bytes',
      ({ text }) => Object.assign(text.chatTemplate ?? {}, { bytes: 2 ** 50 }),
      /text\.chatTemplate\.bytes/,
    ],
    ['a trunk shard of 5 MiB', ({ trunk }) => (trunk.shards[0].bytes = 5 << 20), /trunk\.shards\[0\]\.bytes/],
    [
      'a trunk that no kernel can address, of one shard a thousand times',
      ({ trunk }) =>
        trunk.shards.push(
          ...Array.from({ length: 1024 }, () => ({ hash: trunk.shards[0].hash, bytes: 4 << 20 })),
        ),
      /up to 4294967296/,
    ],
    [
      'a tensor whose size leaves 32 bits',
      ({ config, trunk }) => {
        config.vocab = 2 ** 24
        for (const { name, shape } of trunk.tensors) if (/^(embed|head)/.test(name)) shape[0] = 2 ** 24
      },
      /overlaps|ends after/,
    ],
    [
      'experts whose size leaves 32 bits',
      ({ config, experts }) => {
        config.expertUnits = 2 ** 24
        experts.bytes = 3 * (2 ** 24 / 16) * 2 * 288
      },
      /up to 4294967296/,
    ],
    ['an offset beyond the trunk', ({ trunk }) => (trunk.tensors[3].offset = 2 ** 40), /ends after/],
    ['a tensor over another', ({ trunk }) => (trunk.tensors[3].offset = trunk.tensors[2].offset), /overlaps/],
  ]
  it.each(cases)('%s', (_, change, message) => {
    const changed = structuredClone(manifest)
    change(changed)
    const parse = () => parseManifest(bytesOf(changed))
    expect(parse).toThrow(malformed)
    expect(parse).toThrow(message)
  })
})
