/**
 * @module
 * A pack of random numbers with the shapes of the model that ships: what a step costs does not depend on the weights, and
 * nobody has to carry 80 MB to the machine that is measured. Its gates route the share of experts that is asked for.
 */
import { type ModelConfig, qkvRows } from '@sparsedge/engine/model/config'
import { layoutBytes, planeBytes, TILE_BYTES, TILE_ROWS } from '@sparsedge/engine/pack/layout'
import {
  expertShardBytes,
  MAX_TRUNK_SHARD,
  type Manifest,
  TRUNK_ALIGNMENT,
} from '@sparsedge/engine/pack/manifest'
import { trunkTensors } from '@sparsedge/engine/pack/trunk'
import { type MemoryStore, memoryStore } from '@sparsedge/engine/store/memory'

/** SmolLM2-135M as models/ has it. */
export function smolConfig(layers: number, share: number): ModelConfig {
  return {
    layers,
    hidden: 576,
    heads: 9,
    kvHeads: 3,
    headDim: 64,
    experts: 24,
    expertUnits: 64,
    sharedUnits: 0,
    vocab: 49152,
    tiedHead: true,
    normEps: 1e-5,
    ropeScale: 1,
    context: 2048,
    gate:
      share === 1
        ? { kind: 'all', source: 'own', selection: { by: 'all' } }
        : { kind: 'clamped_linear', source: 'previous', selection: { by: 'positive' } },
    eosTokens: [0],
  }
}

/** How far a gate's scores, of standard deviation 1, must be shifted for a share of them to be positive. */
const SHIFT: Readonly<Record<number, number>> = { 1: 0, 0.5: 0, 0.25: -0.674, 0.125: -1.15 }

/** The scale of a tile's rows; with codes 0 to 15 and this zero point, weights of the scale R · SCALE · 37. */
const SCALE = 128
const ZERO = 60
const DEVIATION = SCALE * 37

export async function syntheticPack(
  layers: number,
  share: number,
): Promise<{ manifest: Manifest; store: MemoryStore }> {
  const config = smolConfig(layers, share)
  const store = memoryStore()
  const random = randomBytes(1)

  let end = 0
  const tensors = trunkTensors(config).map(({ name, shape, quantised }) => {
    const layout = quantised ? ('q4' as const) : ('f32' as const)
    const offset = Math.ceil(end / TRUNK_ALIGNMENT) * TRUNK_ALIGNMENT
    end = offset + layoutBytes(layout, shape[0], shape[1] ?? 1)
    return { name, layout, shape: [...shape], offset }
  })
  const image = new Uint8Array(end)
  for (const { name, layout, shape, offset } of tensors) {
    const bytes = image.subarray(offset, offset + layoutBytes(layout, shape[0], shape[1] ?? 1))
    if (layout === 'q4') fillTiles(bytes, random)
    else
      new Float32Array(image.buffer, offset, bytes.length / 4).set(
        floats(config, name, bytes.length / 4, share),
      )
  }
  const shards: { hash: string; bytes: number }[] = []
  for (let at = 0; at < image.length; at += MAX_TRUNK_SHARD) {
    const bytes = image.slice(at, at + MAX_TRUNK_SHARD)
    shards.push({ hash: await store.putShard(bytes), bytes: bytes.length })
  }

  const shapes = { config, experts: { layout: 'q4' as const, bytes: 0, layers: [] } }
  const bytes = expertShardBytes(shapes)
  const experts: Manifest['experts']['layers'] = []
  for (let layer = 0; layer < layers; layer++) {
    const bundle = new Uint8Array(config.experts * bytes)
    fillTiles(bundle, random)
    const hashes: string[] = []
    for (let e = 0; e < config.experts; e++)
      hashes.push(await store.putShard(bundle.slice(e * bytes, (e + 1) * bytes)))
    experts.push({ bundle: await store.putShard(bundle), shards: hashes })
  }
  const manifest: Manifest = {
    format: 'sparsedge.pack',
    version: 1,
    name: `synthetic-${share}`,
    config,
    trunk: { shards, tensors },
    experts: { layout: 'q4', bytes, layers: experts },
    text: { tokenizer: shards[0] },
    quantisation: [],
    provenance: { source: 'random numbers', licence: 'Apache-2.0', tool: 'bench/gpu' },
  }
  return { manifest, store }
}

/** Bytes of a model's matrices as they lie in a pack. */
export function packedBytes(config: ModelConfig): number {
  const { layers, hidden, heads, headDim, experts, expertUnits, vocab } = config
  const layer =
    planeBytes(qkvRows(config), hidden) +
    planeBytes(hidden, heads * headDim) +
    experts * (planeBytes(2 * expertUnits, hidden) + planeBytes(hidden, expertUnits))
  return layers * layer + planeBytes(vocab, hidden)
}

function floats(
  { hidden, expertUnits }: ModelConfig,
  name: string,
  length: number,
  share: number,
): Float32Array {
  if (name === 'rope.inv_freq') return Float32Array.from({ length }, (_, i) => 1e5 ** (-i / length))
  if (name.endsWith('norm')) return new Float32Array(length).fill(1)
  if (name.endsWith('gate.bias')) return new Float32Array(length).fill(SHIFT[share])
  if (name.endsWith('gate.weight')) {
    const random = randomBytes(length)
    // A uniform number from -√3 to √3 has a deviation of 1.
    return Float32Array.from({ length }, () => ((random() / 127.5 - 1) * Math.sqrt(3)) / Math.sqrt(hidden))
  }
  // Row scales. A row's norm is 1; an embedding's is 2, so that a token's own row does not outweigh all layers.
  const norm = name.startsWith('embed') ? 2 : 1
  const cols = name.includes('down') ? 24 * expertUnits : hidden
  return new Float32Array(length).fill(norm / (DEVIATION * Math.sqrt(cols)))
}

function fillTiles(bytes: Uint8Array, random: () => number): void {
  for (let i = 0; i < bytes.length; i++) {
    const at = i % TILE_BYTES
    bytes[i] = at < TILE_ROWS ? SCALE : at < 2 * TILE_ROWS ? ZERO : random()
  }
}

/** Bytes of a xorshift generator. */
function randomBytes(seed: number): () => number {
  let state = (seed * 0x9e3779b9) | 1
  return () => {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    return (state >>> 8) & 255
  }
}
