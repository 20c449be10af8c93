/**
 * @module
 * The manifest: the one mutable object of a pack, which names all the others by their hash. Parsed and checked once,
 * here; everything behind it trusts it.
 */
import { z } from 'zod'
import { SparsedgeError } from '../errors.ts'
import { ModelConfig } from '../model/config.ts'
import { HASH, MODEL_NAME } from '../store/store.ts'
import { LAYOUTS, layoutBytes, TILE_ROWS } from './layout.ts'
import { trunkTensors } from './trunk.ts'

export const FORMAT = 'sparsedge.pack'
export const FORMAT_VERSION = 1
/** Trunk shards are no larger, so that a layer can start before the last one arrives. */
export const MAX_TRUNK_SHARD = 4 << 20
/** Every tensor of the trunk starts at a multiple of this, in bytes. */
export const TRUNK_ALIGNMENT = 64

/** Bytes that the kernels can address; the trunk and the experts of a layer must fit at once. */
const ADDRESSABLE = 2 ** 32
/** Llama 3's tokenizer.json, the largest in reach, has 17 MB if it is written with spaces. */
const MAX_TOKENIZER = 32 << 20
const MAX_TEMPLATE = 256 << 10

const Hash = z.string().regex(HASH, 'must be a SHA-256 in lower-case hex')
const shardRef = (most: number) => z.strictObject({ hash: Hash, bytes: z.int().positive().max(most) })

/** A tensor of the trunk image: `offset` counts from the image's start, in bytes. */
const TrunkTensor = z.strictObject({
  name: z.string(),
  layout: z.enum(LAYOUTS),
  /** [rows, cols], or [length] for a vector. */
  shape: z.array(z.int().positive()).min(1).max(2),
  offset: z.int().nonnegative().multipleOf(TRUNK_ALIGNMENT),
  /** Of a `q8` embedding or head: its second plane covers this many rows, the first ones; absent: all of them. */
  fineRows: z.int().positive().multipleOf(TILE_ROWS).optional(),
})

/** ‖dequantised - source‖ / ‖source‖ of one source tensor. */
const TensorError = z.strictObject({ name: z.string(), layout: z.enum(LAYOUTS), relativeError: z.number() })

export const Manifest = z.strictObject({
  format: z.literal(FORMAT),
  version: z.literal(FORMAT_VERSION),
  name: z.string().regex(MODEL_NAME),
  config: ModelConfig,
  trunk: z.strictObject({
    /** Cut from one linear image, end to end, in the order a forward pass reads them. */
    shards: z.array(shardRef(MAX_TRUNK_SHARD)).min(1),
    tensors: z.array(TrunkTensor),
  }),
  experts: z.strictObject({
    layout: z.enum(['q4', 'q8']),
    /** Bytes of one expert's shard: gate and up tiles [2·units, hidden], then down tiles [hidden, units]. */
    bytes: z.int().positive(),
    /** Per layer: the bundle is its experts' shards, end to end. */
    layers: z.array(z.strictObject({ bundle: Hash, shards: z.array(Hash) })),
  }),
  text: z.strictObject({
    /** tokenizer.json as Hugging Face writes it. */
    tokenizer: shardRef(MAX_TOKENIZER),
    /** Jinja source; absent where the model has none. */
    chatTemplate: shardRef(MAX_TEMPLATE).optional(),
  }),
  /** How often each expert is routed, [layers][experts], from 0 to 1, measured by the packer or the trainer. */
  profile: z.array(z.array(z.number().min(0).max(1))).optional(),
  /** Share asked for → measured quality, one row per share and text that were evaluated. */
  quality: z
    .array(z.strictObject({ share: z.number(), text: z.string(), perplexity: z.number(), kl: z.number() }))
    .optional(),
  quantisation: z.array(TensorError),
  provenance: z.strictObject({
    source: z.string(),
    licence: z.string(),
    /** The tool that wrote the pack, with its version. */
    tool: z.string(),
  }),
})

export type Manifest = z.infer<typeof Manifest>
export type ShardRef = z.infer<ReturnType<typeof shardRef>>
export type TrunkTensor = z.infer<typeof TrunkTensor>

/**
 * Parses and checks a manifest.
 *
 * @throws SparsedgeError `manifest_version` for another major version, `manifest_malformed` for anything else that is
 * not as the format says: bad JSON, wrong types, tensors that overlap or miss, sizes that do not add up.
 */
export function parseManifest(bytes: Uint8Array): Manifest {
  let json: unknown
  try {
    json = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes))
  } catch (cause) {
    throw new SparsedgeError('manifest_malformed', 'the manifest is not JSON', {}, { cause })
  }
  const version = z.object({ format: z.literal(FORMAT), version: z.number() }).safeParse(json)
  if (version.success && version.data.version !== FORMAT_VERSION) {
    throw new SparsedgeError(
      'manifest_version',
      `this engine reads pack format ${FORMAT_VERSION}, the pack is version ${version.data.version}; pack it again`,
    )
  }
  const parsed = Manifest.safeParse(json)
  if (!parsed.success) {
    throw new SparsedgeError('manifest_malformed', z.prettifyError(parsed.error), {}, { cause: parsed.error })
  }
  checkSizes(parsed.data)
  return parsed.data
}

/** Everything that the schema cannot say: counts and sizes that must agree with the model's shapes. */
function checkSizes(manifest: Manifest): void {
  const { config, trunk, experts, profile, name } = manifest
  const fail = (message: string): never => {
    throw new SparsedgeError('manifest_malformed', message, { model: name })
  }
  if (experts.layers.length !== config.layers)
    fail(`${experts.layers.length} layers of experts, not ${config.layers}`)
  for (const [layer, { shards }] of experts.layers.entries()) {
    if (shards.length !== config.experts)
      fail(`layer ${layer} lists ${shards.length} experts, not ${config.experts}`)
  }
  const expertBytes = expertShardBytes(manifest)
  if (experts.bytes !== expertBytes)
    fail(`an expert is ${expertBytes} bytes, the manifest says ${experts.bytes}`)
  if (profile && (profile.length !== config.layers || profile.some((row) => row.length !== config.experts))) {
    fail('the profile must be [layers][experts]')
  }
  const image = trunkBytes(manifest)
  const least = image + config.experts * expertBytes
  if (least > ADDRESSABLE)
    fail(`the trunk and a layer's experts take ${least} bytes; up to ${ADDRESSABLE} can be served`)
  const table = new Map(trunk.tensors.map((tensor) => [tensor.name, tensor]))
  if (table.size !== trunk.tensors.length) fail('a tensor is listed twice')
  const expected = trunkTensors(config)
  for (const { name, shape, quantised } of expected) {
    const tensor = table.get(name)
    if (!tensor) fail(`tensor ${name} is missing`)
    else if (tensor.shape.join() !== shape.join()) fail(`tensor ${name} is [${tensor.shape}], not [${shape}]`)
    else if ((tensor.layout !== 'f32') !== quantised) fail(`tensor ${name} cannot be ${tensor.layout}`)
    else if (tensor.fineRows !== undefined && !mayEndEarly(tensor))
      fail(`tensor ${name} cannot have a second plane of ${tensor.fineRows} rows`)
  }
  if (table.size !== expected.length) fail('the trunk lists a tensor that the model does not have')
  let end = 0
  for (const tensor of [...trunk.tensors].sort((a, b) => a.offset - b.offset)) {
    if (tensor.offset < end) fail(`tensor ${tensor.name} overlaps the one before it`)
    end = tensor.offset + tensorBytes(tensor)
    if (end > image) fail(`tensor ${tensor.name} ends after the trunk does`)
  }
}

/** Kernels look for a second plane that is shorter than the first only where tokens are looked up or scored. */
function mayEndEarly({ name, layout, shape, fineRows = 0 }: TrunkTensor): boolean {
  return (name === 'embed' || name === 'head') && layout === 'q8' && fineRows < shape[0]
}

/** Bytes of one expert's shard, by the model's shapes. */
export function expertShardBytes({ config, experts }: Pick<Manifest, 'config' | 'experts'>): number {
  const { hidden, expertUnits } = config
  return (
    layoutBytes(experts.layout, 2 * expertUnits, hidden) + layoutBytes(experts.layout, hidden, expertUnits)
  )
}

/** Bytes of the trunk image. */
export function trunkBytes({ trunk }: Pick<Manifest, 'trunk'>): number {
  return trunk.shards.reduce((sum, shard) => sum + shard.bytes, 0)
}

/** Bytes of one tensor of the trunk. */
export function tensorBytes({ layout, shape, fineRows }: Omit<TrunkTensor, 'name' | 'offset'>): number {
  return layoutBytes(layout, shape[0], shape[1] ?? 1, fineRows)
}
