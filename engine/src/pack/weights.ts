/**
 * @module
 * A pack read back as float tensors under their canonical names: the inverse of packing, up to quantisation. For the
 * reference backend and for unpacking; serving never needs it.
 */
import { SparsedgeError } from '../errors.ts'
import { type FloatTensor, tensorShape, type WeightSource } from '../model/weights.ts'
import type { ShardStore } from '../store/store.ts'
import { verified } from '../store/verified.ts'
import { dequantise, layoutBytes } from './layout.ts'
import { loadTrunk } from './load.ts'
import { type Manifest, tensorBytes, trunkBytes } from './manifest.ts'
import { rowScale } from './trunk.ts'

/**
 * The dequantised weights of a pack. Reads the trunk once, each layer's bundle when one of its FFN tensors is asked for
 * (and keeps only the last layer, so ask layer by layer). All bytes are verified.
 *
 * @throws SparsedgeError from `tensor`: what the store throws; `manifest_malformed` for a name that the model lacks
 */
export function packWeights(manifest: Manifest, store: ShardStore, signal?: AbortSignal): WeightSource {
  const { config } = manifest
  let trunk: Promise<Trunk> | undefined
  let ffn: { readonly layer: number; readonly tensors: Promise<Ffn> } | undefined

  // What failed is forgotten, so that the next to ask reads again.
  const readTrunk = () => {
    trunk ??= openTrunk(manifest, store, signal).catch((cause: unknown) => {
      trunk = undefined
      throw cause
    })
    return trunk
  }
  const readFfn = (open: Trunk, layer: number) => {
    if (ffn?.layer === layer) return ffn.tensors
    const tensors = openFfn(manifest, open, store, layer, signal).catch((cause: unknown) => {
      if (ffn?.tensors === tensors) ffn = undefined
      throw cause
    })
    ffn = { layer, tensors }
    return tensors
  }
  const queries = config.heads * config.headDim * config.hidden
  const keys = config.kvHeads * config.headDim * config.hidden

  return {
    config,
    async tensor(name): Promise<FloatTensor> {
      const shape = tensorShape(config, name)
      const [, digits, inLayer] = LAYER_TENSOR.exec(name) ?? []
      const layer = Number(digits ?? 0)
      if (!shape || layer >= config.layers) {
        throw new SparsedgeError('manifest_malformed', `the model has no tensor ${name}`, {
          model: manifest.name,
        })
      }
      const open = await readTrunk()
      const packed = (part: string) => `layers.${layer}.${part}`
      const find = async (): Promise<Float32Array> => {
        switch (inLayer ?? name) {
          case 'model.embed_tokens.weight':
            return open.matrix('embed')
          case 'input_layernorm.weight':
            return open.floats(packed('attention.norm'))
          case 'self_attn.q_proj.weight':
            return open.matrix(packed('attention.qkv')).slice(0, queries)
          case 'self_attn.k_proj.weight':
            return open.matrix(packed('attention.qkv')).slice(queries, queries + keys)
          case 'self_attn.v_proj.weight':
            return open.matrix(packed('attention.qkv')).slice(queries + keys)
          case 'self_attn.o_proj.weight':
            return open.matrix(packed('attention.output'))
          case 'post_attention_layernorm.weight':
            return open.floats(packed('ffn.norm'))
          case 'mlp.router.weight':
            return open.floats(packed('gate.weight'))
          case 'mlp.router.bias':
            return open.floats(packed('gate.bias'))
          case 'mlp.gate_proj.weight':
            return (await readFfn(open, layer)).gate
          case 'mlp.up_proj.weight':
            return (await readFfn(open, layer)).up
          case 'mlp.down_proj.weight':
            return (await readFfn(open, layer)).down
          case 'model.norm.weight':
            return open.floats('norm')
          case 'lm_head.weight':
            return open.matrix('head')
        }
        return open.floats(name) // rope.inv_freq
      }
      return { shape, data: await find() }
    },
  }
}

const LAYER_TENSOR = /^model\.layers\.(\d+)\.(.+)$/

// ---- The trunk --------------------------------------------------------------------------------------------------

interface Trunk {
  /** A float tensor, flat. */
  floats(name: string): Float32Array
  /** A quantised tensor in float, [rows, cols]; its row scales stand under `scales`, by default beside it. */
  matrix(name: string, scales?: string): Float32Array
}

async function openTrunk(manifest: Manifest, store: ShardStore, signal?: AbortSignal): Promise<Trunk> {
  const image = new Uint8Array(trunkBytes(manifest))
  await loadTrunk(manifest, store, image, signal)
  const table = new Map(manifest.trunk.tensors.map((tensor) => [tensor.name, tensor]))
  const find = (name: string) => {
    const tensor = table.get(name)
    if (!tensor) throw new SparsedgeError('manifest_malformed', `the trunk has no tensor ${name}`)
    return { ...tensor, bytes: image.subarray(tensor.offset, tensor.offset + tensorBytes(tensor)) }
  }
  const floats = (name: string) => littleEndianFloats(find(name).bytes)
  return {
    floats,
    matrix(name, scales = rowScale(name)) {
      const { layout, shape, fineRows, bytes } = find(name)
      if (layout === 'f32') return littleEndianFloats(bytes)
      return dequantise(layout, bytes, floats(scales), shape[0], shape[1], fineRows)
    },
  }
}

function littleEndianFloats(bytes: Uint8Array): Float32Array {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  return Float32Array.from({ length: bytes.length / 4 }, (_, i) => view.getFloat32(4 * i, true))
}

// ---- A layer's FFN ------------------------------------------------------------------------------------------------

interface Ffn {
  /** [sharedUnits + experts · expertUnits, hidden] */
  readonly gate: Float32Array
  readonly up: Float32Array
  /** [hidden, sharedUnits + experts · expertUnits] */
  readonly down: Float32Array
}

/** Puts the shared expert and the routed ones, read from the layer's bundle, side by side in canonical order. */
async function openFfn(
  { config, experts, name }: Manifest,
  trunk: Trunk,
  store: ShardStore,
  layer: number,
  signal?: AbortSignal,
): Promise<Ffn> {
  const { hidden, sharedUnits, expertUnits } = config
  const { bundle, shards } = experts.layers[layer]
  const slots = shards.map((hash) => ({ hash, bytes: new Uint8Array(experts.bytes) }))
  await verified(store)
    .read(bundle, slots, signal)
    .catch((cause: unknown) => {
      throw cause instanceof SparsedgeError ? cause.at({ model: name, layer }) : cause
    })

  const width = sharedUnits + config.experts * expertUnits
  const ffn: Ffn = {
    gate: new Float32Array(width * hidden),
    up: new Float32Array(width * hidden),
    down: new Float32Array(hidden * width),
  }
  /** gateUp: [2 · units, hidden], down: [hidden, units]; the expert's units start at `start`. */
  const place = (start: number, units: number, gateUp: Float32Array, down: Float32Array) => {
    ffn.gate.set(gateUp.subarray(0, units * hidden), start * hidden)
    ffn.up.set(gateUp.subarray(units * hidden), start * hidden)
    for (let row = 0; row < hidden; row++) {
      ffn.down.set(down.subarray(row * units, (row + 1) * units), row * width + start)
    }
  }

  const downScales = `layers.${layer}.down.row_scale`
  if (sharedUnits > 0) {
    const down = trunk.matrix(`layers.${layer}.shared.down`, downScales)
    place(0, sharedUnits, trunk.matrix(`layers.${layer}.shared.gate_up`), down)
  }
  const gateUpScales = trunk.floats(`layers.${layer}.experts.gate_up.row_scale`) // [experts, 2 · expertUnits]
  const gateUpBytes = layoutBytes(experts.layout, 2 * expertUnits, hidden)
  for (const [e, { bytes }] of slots.entries()) {
    const scales = gateUpScales.subarray(e * 2 * expertUnits, (e + 1) * 2 * expertUnits)
    const gateUpTiles = bytes.subarray(0, gateUpBytes)
    const downTiles = bytes.subarray(gateUpBytes)
    place(
      sharedUnits + e * expertUnits,
      expertUnits,
      dequantise(experts.layout, gateUpTiles, scales, 2 * expertUnits, hidden),
      dequantise(experts.layout, downTiles, trunk.floats(downScales), hidden, expertUnits),
    )
  }
  return ffn
}
