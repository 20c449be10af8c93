/**
 * @module
 * Weights → pack: quantises one tensor after the other, lays the bytes out as docs/pack-format.md says and hands every
 * object to a writer as soon as it is complete, so that no more than one layer (or the embedding) is held at a time.
 * Equal input gives equal bytes, and so equal hashes.
 */
import { SparsedgeError } from '@sparsedge/engine/errors'
import type { ModelConfig } from '@sparsedge/engine/model/config'
import { layerTensor, type WeightSource } from '@sparsedge/engine/model/weights'
import type { Layout, QuantisedLayout } from '@sparsedge/engine/pack/layout'
import {
  expertShardBytes,
  FORMAT,
  FORMAT_VERSION,
  MAX_TRUNK_SHARD,
  Manifest,
  parseManifest,
  type ShardRef,
  TRUNK_ALIGNMENT,
  type TrunkTensor,
} from '@sparsedge/engine/pack/manifest'
import { rowScale, trunkTensors } from '@sparsedge/engine/pack/trunk'
import { sha256 } from '@sparsedge/engine/store/sha256'
import { ChatTemplate } from '@sparsedge/engine/text/chat-template'
import { createTokenizer } from '@sparsedge/engine/text/tokenizer'
import { malformed } from './checkpoint/checkpoint.ts'
import { concatBytes, sliceCols, sliceRows, stackRows, tileBytes } from './cut.ts'
import { checkFinite, type QuantisedMatrix, quantise } from './quantise.ts'

/** Below this relative error at 4 bits an embedding is taken to lie on a 4-bit grid already: a second plane gains nothing. */
export const ON_GRID = 0.01

/** An object of a pack, named by the SHA-256 of its bytes, which are never changed after it was handed over. */
export interface PackObject {
  readonly kind: 'trunk' | 'expert' | 'bundle' | 'text'
  readonly hash: string
  readonly bytes: Uint8Array<ArrayBuffer>
}

export interface PackOptions {
  readonly name: string
  readonly layouts: {
    /** Of the embedding and the head. `auto`: `q4` where its relative error is below {@link ON_GRID}, else `q8`. */
    readonly embedding: QuantisedLayout | 'auto'
    /** Rows of a `q8` embedding and head that get the second plane, the first ones; a multiple of 16. Absent: all. */
    readonly fineRows?: number
    readonly attention: QuantisedLayout
    /** Of the routed experts and the shared one. */
    readonly experts: QuantisedLayout
  }
  readonly text: {
    /** tokenizer.json. */
    readonly tokenizer: Uint8Array<ArrayBuffer>
    /** Jinja. */
    readonly chatTemplate?: Uint8Array<ArrayBuffer>
  }
  readonly provenance: Manifest['provenance']
  readonly profile?: Manifest['profile']
  readonly quality?: Manifest['quality']
  /** Called after each source tensor, with its number of weights. */
  readonly onTensor?: (name: string, weights: number) => void
}

/**
 * Packs a model.
 *
 * @param write takes each object once it is complete: trunk shards in image order, per layer its experts and their
 * bundle, then the text files. The manifest is the caller's to write, after all of them.
 * @throws SparsedgeError what the source throws; `checkpoint_malformed` for a weight that is not finite, or text
 * files that the engine cannot use; `checkpoint_unsupported` for a shape that the layout cannot hold;
 * `invalid_request` for a bad name
 */
export async function pack(
  source: WeightSource,
  options: PackOptions,
  write: (object: PackObject) => Promise<void>,
): Promise<Manifest> {
  const { config } = source
  const { layouts, text } = options
  const name = Manifest.shape.name.safeParse(options.name)
  if (!name.success) {
    const message = `a pack cannot be named "${options.name}": small letters, digits, '.', '_' and '-' only, 64 at most`
    throw new SparsedgeError('invalid_request', message)
  }
  checkText(config, text)
  const read = sourceReader(source, options.onTensor)
  const trunk = trunkWriter(config, write)
  const layers: Manifest['experts']['layers'] = []

  await trunk.floats('rope.inv_freq', await read.floats('rope.inv_freq'))
  const { embedding, fineRows } = layouts
  await trunk.matrix('embed', await read.matrix('model.embed_tokens.weight', embedding, fineRows))
  for (let layer = 0; layer < config.layers; layer++) {
    const from = (name: string) => layerTensor(layer, name)
    const to = (name: string) => `layers.${layer}.${name}`
    await trunk.floats(to('attention.norm'), await read.floats(from('input_layernorm.weight')))
    const qkv = stackRows(
      await read.matrix(from('self_attn.q_proj.weight'), layouts.attention),
      await read.matrix(from('self_attn.k_proj.weight'), layouts.attention),
      await read.matrix(from('self_attn.v_proj.weight'), layouts.attention),
    )
    await trunk.matrix(to('attention.qkv'), qkv)
    const output = await read.matrix(from('self_attn.o_proj.weight'), layouts.attention)
    await trunk.matrix(to('attention.output'), output)
    await trunk.floats(to('ffn.norm'), await read.floats(from('post_attention_layernorm.weight')))
    if (config.gate.kind !== 'all') {
      await trunk.floats(to('gate.weight'), await read.floats(from('mlp.router.weight')))
      await trunk.floats(to('gate.bias'), await read.floats(from('mlp.router.bias')))
    }
    const ffn = {
      gate: await read.matrix(from('mlp.gate_proj.weight'), layouts.experts),
      up: await read.matrix(from('mlp.up_proj.weight'), layouts.experts),
      down: await read.matrix(from('mlp.down_proj.weight'), layouts.experts),
    }
    const cut = cutExperts(config, ffn)
    await trunk.floats(to('down.row_scale'), ffn.down.rowScales)
    await trunk.floats(to('experts.gate_up.row_scale'), cut.rowScales)
    if (cut.shared) {
      await trunk.matrix(to('shared.gate_up'), cut.shared.gateUp)
      await trunk.tiles(to('shared.down'), cut.shared.down)
    }
    layers.push(await writeExperts(cut.experts, write))
  }
  await trunk.floats('norm', await read.floats('model.norm.weight'))
  if (!config.tiedHead) {
    await trunk.matrix('head', await read.matrix('lm_head.weight', embedding, fineRows))
  }
  const image = await trunk.finish()

  const manifest: Manifest = {
    format: FORMAT,
    version: FORMAT_VERSION,
    name: name.data,
    config,
    trunk: image,
    experts: {
      layout: layouts.experts,
      bytes: expertShardBytes({ config, experts: { layout: layouts.experts, bytes: 0, layers } }),
      layers,
    },
    text: {
      tokenizer: await writeObject('text', text.tokenizer, write),
      ...(text.chatTemplate && { chatTemplate: await writeObject('text', text.chatTemplate, write) }),
    },
    ...(options.profile && { profile: options.profile }),
    ...(options.quality && { quality: options.quality }),
    quantisation: read.errors,
    provenance: options.provenance,
  }
  // What the engine would refuse never leaves here.
  return parseManifest(manifestBytes(manifest))
}

/** The bytes of `manifest.json`. */
export function manifestBytes(manifest: Manifest): Uint8Array<ArrayBuffer> {
  return new TextEncoder().encode(`${JSON.stringify(manifest)}\n`)
}

/** Tries what the engine will do with the text files and token ids, before any of the long work is done. */
function checkText(config: ModelConfig, { tokenizer, chatTemplate }: PackOptions['text']): void {
  const beyond = [config.bosToken ?? 0, ...config.eosTokens].find((token) => token >= config.vocab)
  if (beyond !== undefined) {
    throw malformed(
      `token ${beyond} is said to begin or end texts, but there are only ${config.vocab} tokens`,
    )
  }
  try {
    const built = createTokenizer(tokenizer, config.vocab)
    if (chatTemplate) new ChatTemplate(new TextDecoder().decode(chatTemplate), built, config)
  } catch (cause) {
    throw cause instanceof SparsedgeError ? malformed(cause.message, cause) : cause
  }
}

// ---- Reading ----------------------------------------------------------------------------------------------------

/** Reads tensors as floats or quantised, and keeps each one's quantisation error. */
function sourceReader(source: WeightSource, onTensor: PackOptions['onTensor']) {
  const errors: Manifest['quantisation'] = []

  const floats = async (name: string): Promise<Float32Array> => {
    const tensor = await source.tensor(name)
    checkFinite(name, tensor)
    onTensor?.(name, tensor.data.length)
    return tensor.data
  }

  const matrix = async (
    name: string,
    layout: QuantisedLayout | 'auto',
    fineRows?: number,
  ): Promise<QuantisedMatrix> => {
    const tensor = await source.tensor(name)
    const as = (layout: QuantisedLayout) => quantise(name, tensor, layout, fineRows)
    let quantised = as(layout === 'auto' ? 'q4' : layout)
    if (layout === 'auto' && quantised.relativeError >= ON_GRID) quantised = as('q8')
    // Six digits are enough to read, and no more than a repacked float16 checkpoint agrees in.
    const relativeError = Number(quantised.relativeError.toPrecision(6))
    errors.push({ name, layout: quantised.layout, relativeError })
    onTensor?.(name, tensor.data.length)
    return quantised
  }

  return { floats, matrix, errors }
}

// ---- The trunk --------------------------------------------------------------------------------------------------

/** Appends tensors to the trunk's image, which leaves in shards whenever one is full. */
function trunkWriter(config: ModelConfig, write: (object: PackObject) => Promise<void>) {
  const shapes = new Map(trunkTensors(config).map(({ name, shape }) => [name, [...shape]]))
  const shards: ShardRef[] = []
  const tensors: TrunkTensor[] = []
  const shard = new Uint8Array(MAX_TRUNK_SHARD)
  let filled = 0

  const append = async (bytes: Uint8Array): Promise<void> => {
    for (let done = 0; done < bytes.length; ) {
      const part = bytes.subarray(done, done + shard.length - filled)
      shard.set(part, filled)
      filled += part.length
      done += part.length
      if (filled === shard.length) await flush()
    }
  }
  const flush = async (): Promise<void> => {
    if (filled === 0) return
    shards.push(await writeObject('trunk', shard.slice(0, filled), write))
    filled = 0
  }
  const tensor = async (
    name: string,
    layout: Layout,
    bytes: Uint8Array,
    fineRows?: number,
  ): Promise<void> => {
    const offset = shards.length * MAX_TRUNK_SHARD + filled
    const shape = shapes.get(name)
    if (!shape) throw new RangeError(`the trunk has no tensor ${name}`)
    tensors.push({ name, layout, shape, offset, ...(fineRows !== undefined && { fineRows }) })
    await append(bytes)
    await append(new Uint8Array(-bytes.length & (TRUNK_ALIGNMENT - 1)))
  }
  const floats = (name: string, data: Float32Array) => tensor(name, 'f32', floatBytes(data))
  /** A matrix whose row scales stand elsewhere. */
  const tiles = (name: string, matrix: QuantisedMatrix) =>
    tensor(name, matrix.layout, tileBytes(matrix), matrix.fineRows)

  return {
    floats,
    tiles,
    matrix: async (name: string, matrix: QuantisedMatrix) => {
      await floats(rowScale(name), matrix.rowScales)
      await tiles(name, matrix)
    },
    finish: async () => {
      await flush()
      return { shards, tensors }
    },
  }
}

/** Little-endian, whatever this machine is. */
function floatBytes(data: Float32Array): Uint8Array {
  const view = new DataView(new ArrayBuffer(data.byteLength))
  for (let i = 0; i < data.length; i++) view.setFloat32(4 * i, data[i], true)
  return new Uint8Array(view.buffer)
}

// ---- Experts ----------------------------------------------------------------------------------------------------

interface Ffn {
  /** [sharedUnits + experts · expertUnits, hidden] */
  readonly gate: QuantisedMatrix
  readonly up: QuantisedMatrix
  /** [hidden, sharedUnits + experts · expertUnits] */
  readonly down: QuantisedMatrix
}

interface Expert {
  /** [2 · units, hidden] */
  readonly gateUp: QuantisedMatrix
  /** [hidden, units] */
  readonly down: QuantisedMatrix
}

/** Cuts a layer's FFN into its shared expert and its routed ones, with the routed ones' gate and up row scales. */
function cutExperts(
  { sharedUnits, experts, expertUnits }: ModelConfig,
  ffn: Ffn,
): { shared: Expert | undefined; experts: Expert[]; rowScales: Float32Array } {
  const cut = (start: number, units: number): Expert => ({
    gateUp: stackRows(sliceRows(ffn.gate, start, units), sliceRows(ffn.up, start, units)),
    down: sliceCols(ffn.down, start, units),
  })
  const routed = Array.from({ length: experts }, (_, e) => cut(sharedUnits + e * expertUnits, expertUnits))
  return {
    shared: sharedUnits > 0 ? cut(0, sharedUnits) : undefined,
    experts: routed,
    rowScales: Float32Array.from(routed.flatMap(({ gateUp }) => [...gateUp.rowScales])),
  }
}

/** Writes a layer's expert shards and the bundle that they make up together. */
async function writeExperts(experts: readonly Expert[], write: (object: PackObject) => Promise<void>) {
  const bundle = concatBytes(experts.flatMap(({ gateUp, down }) => [tileBytes(gateUp), tileBytes(down)]))
  const bytes = bundle.length / experts.length
  const shards: string[] = []
  for (let e = 0; e < experts.length; e++) {
    const { hash } = await writeObject('expert', bundle.subarray(e * bytes, (e + 1) * bytes), write)
    shards.push(hash)
  }
  return { bundle: (await writeObject('bundle', bundle, write)).hash, shards }
}

async function writeObject(
  kind: PackObject['kind'],
  bytes: Uint8Array<ArrayBuffer>,
  write: (object: PackObject) => Promise<void>,
): Promise<ShardRef> {
  const hash = await sha256(bytes)
  await write({ kind, hash, bytes })
  return { hash, bytes: bytes.length }
}
