/**
 * @module
 * GGUF files of Llama-like models: llama.cpp's names, quantisation and order of the query and key rows → the project's.
 * Metadata is read by @huggingface/gguf; what it says is checked here before it is used.
 */
import { basename } from 'node:path'
import { type GGUFTensorInfo, gguf } from '@huggingface/gguf'
import type { ModelConfig } from '@sparsedge/engine/model/config'
import { RopeScaling, ropeFrequencies } from '@sparsedge/engine/model/rope'
import { type FloatTensor, tensorShape } from '@sparsedge/engine/model/weights'
import { z } from 'zod'
import {
  type Checkpoint,
  count,
  type ImportOptions,
  malformed,
  modelConfig,
  splitDense,
  textFiles,
  unsupported,
} from './checkpoint.ts'
import { type LargeFile, openLargeFile } from './file.ts'
import { GGML_TYPES, type GgmlType } from './gguf-blocks.ts'
import { GgufTokenizer, tokenizerFromGguf } from './gguf-tokenizer.ts'

/** llama.cpp writes sizes of 64 bits for some keys. */
const size = z.union([count, z.bigint().transform(Number).pipe(count)])
const factor = z.number().positive()

const Metadata = GgufTokenizer.extend({
  'general.name': z.string().optional(),
  'general.license': z.string().optional(),
  'general.alignment': size.optional(),
  'llama.block_count': size,
  'llama.context_length': size,
  'llama.embedding_length': size,
  'llama.feed_forward_length': size,
  'llama.attention.head_count': size,
  'llama.attention.head_count_kv': size.optional(),
  'llama.attention.key_length': size.optional(),
  'llama.attention.layer_norm_rms_epsilon': factor,
  'llama.expert_count': z.literal(0, 'models with experts of their own cannot be read from GGUF').optional(),
  'llama.rope.dimension_count': size.optional(),
  'llama.rope.freq_base': factor.default(10_000),
  'llama.rope.scale_linear': factor.optional(),
  'llama.rope.scaling.type': z.string().default('none'),
  'llama.rope.scaling.factor': factor.default(1),
  'llama.rope.scaling.original_context_length': size.optional(),
  'llama.rope.scaling.attn_factor': factor.optional(),
})
type Metadata = z.infer<typeof Metadata>

/** @throws SparsedgeError `checkpoint_malformed`, `checkpoint_unsupported` */
export async function openGguf(path: string, options: ImportOptions): Promise<Checkpoint> {
  const file = await openLargeFile(path)
  try {
    const { metadata, tensors } = await readHeader(file)
    const text = await textFiles(options, {
      tokenizer: async () => tokenizerFromGguf(metadata),
      chatTemplate: async () => encodeText(metadata['tokenizer.chat_template']),
    })
    const rope = await ropeOf(metadata, file, tensors)
    const config = configOf(metadata, tensors, rope.ropeScale, options)
    return {
      weights: {
        config,
        async tensor(name) {
          const shape = tensorShape(config, name)
          if (!shape) throw malformed(`this model has no tensor ${name}`)
          if (name === 'rope.inv_freq') return { shape, data: rope.invFreq }
          const tensor = await readTensor(file, tensors, ggufName(name))
          if (tensor.shape.join() !== shape.join()) {
            throw malformed(`tensor ${ggufName(name)} is [${tensor.shape}] instead of [${shape}]`)
          }
          const heads = rotatedHeads(config, name)
          return heads === undefined ? tensor : rotateHalfOrder(tensor, heads)
        },
      },
      text,
      provenance: {
        source: `${metadata['general.name'] ?? 'GGUF'} (${basename(path)})`,
        ...(metadata['general.license'] && { licence: metadata['general.license'] }),
      },
      close: file.close,
    }
  } catch (error) {
    await file.close()
    throw error
  }
}

// ---- Header -----------------------------------------------------------------------------------------------------------

interface GgufTensor {
  /** As the project orders it: [rows, cols] or [length]. */
  readonly shape: readonly number[]
  readonly type: GgmlType
  /** Offset in the file. */
  readonly start: number
  readonly bytes: number
}

async function readHeader(
  file: LargeFile,
): Promise<{ metadata: Metadata; tensors: Map<string, GgufTensor> }> {
  const header = await gguf(file.path, { allowLocalFile: true }).catch((cause: unknown) => {
    throw malformed(
      `${file.path} is not a readable GGUF file; is the path right, and all of it there?`,
      cause,
    )
  })
  const stated: Readonly<Record<string, unknown>> = { ...header.metadata }
  const architecture = stated['general.architecture']
  if (architecture !== 'llama')
    throw unsupported(`${file.path} is a ${architecture} model; only llama can be read`)
  const parsed = Metadata.safeParse(stated)
  if (!parsed.success) {
    throw malformed(`the metadata of ${file.path}:\n${z.prettifyError(parsed.error)}`, parsed.error)
  }
  if (!header.littleEndian) throw unsupported(`${file.path} is big-endian`)
  const dataStart = Number(header.tensorDataOffset)
  const tensors = new Map<string, GgufTensor>()
  for (const info of header.tensorInfos) {
    if (tensors.has(info.name)) throw malformed(`${file.path} lists tensor ${info.name} twice`)
    tensors.set(info.name, parseTensor(info, dataStart))
  }
  checkBounds(file, tensors)
  return { metadata: parsed.data, tensors }
}

function parseTensor({ name, shape, dtype, offset }: GGUFTensorInfo, dataStart: number): GgufTensor {
  const type = GGML_TYPES.get(dtype)
  if (!type) {
    const known = [...GGML_TYPES.values()].map((t) => t.name).join(', ')
    throw unsupported(`tensor ${name} is of GGML type ${dtype}; only ${known} can be read`)
  }
  if (name.endsWith('.bias')) throw unsupported(`tensor ${name}: models with biases cannot be packed`)
  // GGML counts dimensions from the innermost one.
  const ours = shape.map(Number).reverse()
  const weights = ours.reduce((product, n) => product * n, 1)
  if (weights === 0 || (ours.at(-1) ?? 0) % type.blockSize !== 0) {
    throw malformed(`tensor ${name}: [${ours}] is no whole number of ${type.name} blocks`)
  }
  const bytes = (weights / type.blockSize) * type.blockBytes
  return { shape: ours, type, start: dataStart + Number(offset), bytes }
}

function checkBounds(file: LargeFile, tensors: ReadonlyMap<string, GgufTensor>): void {
  let end = 0
  for (const [name, { start, bytes }] of [...tensors].sort(([, a], [, b]) => a.start - b.start)) {
    if (start < end) throw malformed(`tensor ${name} of ${file.path} overlaps the one before it`)
    end = start + bytes
    if (end > file.size) throw malformed(`${file.path} is cut off: tensor ${name} ends after the file does`)
  }
}

// ---- Model ------------------------------------------------------------------------------------------------------------

function configOf(
  metadata: Metadata,
  tensors: ReadonlyMap<string, GgufTensor>,
  ropeScale: number,
  { experts }: ImportOptions,
): ModelConfig {
  const heads = metadata['llama.attention.head_count']
  const bos = metadata['tokenizer.ggml.bos_token_id']
  const eos = [metadata['tokenizer.ggml.eos_token_id'], metadata['tokenizer.ggml.eot_token_id']]
  return modelConfig({
    layers: metadata['llama.block_count'],
    hidden: metadata['llama.embedding_length'],
    heads,
    kvHeads: metadata['llama.attention.head_count_kv'] ?? heads,
    headDim: headDim(metadata),
    ...splitDense(metadata['llama.feed_forward_length'], experts),
    sharedUnits: 0,
    vocab: metadata['tokenizer.ggml.tokens'].length,
    tiedHead: !tensors.has('output.weight'),
    normEps: metadata['llama.attention.layer_norm_rms_epsilon'],
    ropeScale,
    context: metadata['llama.context_length'],
    ...(bos !== undefined && { bosToken: bos }),
    eosTokens: [...new Set(eos.filter((token) => token !== undefined))],
  })
}

function headDim(metadata: Metadata): number {
  const dim =
    metadata['llama.attention.key_length'] ??
    metadata['llama.embedding_length'] / metadata['llama.attention.head_count']
  if ((metadata['llama.rope.dimension_count'] ?? dim) !== dim) {
    throw unsupported(
      'only a part of each head is rotated (llama.rope.dimension_count); such models cannot be packed',
    )
  }
  return dim
}

async function ropeOf(metadata: Metadata, file: LargeFile, tensors: ReadonlyMap<string, GgufTensor>) {
  const { invFreq, ropeScale } = ropeFrequencies({
    theta: metadata['llama.rope.freq_base'],
    headDim: headDim(metadata),
    scaling: scalingOf(metadata),
  })
  // Llama 3.1 and later: llama.cpp keeps their scaling as one divisor per frequency.
  if (!tensors.has('rope_freqs.weight')) return { invFreq, ropeScale }
  const divisors = await readTensor(file, tensors, 'rope_freqs.weight')
  if (divisors.data.length !== invFreq.length) throw malformed('rope_freqs.weight has the wrong length')
  return { invFreq: invFreq.map((frequency, i) => frequency / divisors.data[i]), ropeScale }
}

function scalingOf(metadata: Metadata): RopeScaling | undefined {
  const type = metadata['llama.rope.scaling.type']
  if (type === 'none') {
    const linear = metadata['llama.rope.scale_linear']
    return linear === undefined ? undefined : { rope_type: 'linear', factor: linear }
  }
  const parsed = RopeScaling.safeParse({
    rope_type: type,
    factor: metadata['llama.rope.scaling.factor'],
    original_max_position_embeddings: metadata['llama.rope.scaling.original_context_length'],
    attention_factor: metadata['llama.rope.scaling.attn_factor'],
  })
  if (parsed.success) return parsed.data
  throw unsupported(`the RoPE scaling ${type} is not known:\n${z.prettifyError(parsed.error)}`, parsed.error)
}

// ---- Tensors ------------------------------------------------------------------------------------------------------------

const NAMES: Readonly<Record<string, string>> = {
  'model.embed_tokens.weight': 'token_embd.weight',
  'model.norm.weight': 'output_norm.weight',
  'lm_head.weight': 'output.weight',
  'input_layernorm.weight': 'attn_norm.weight',
  'post_attention_layernorm.weight': 'ffn_norm.weight',
  'self_attn.q_proj.weight': 'attn_q.weight',
  'self_attn.k_proj.weight': 'attn_k.weight',
  'self_attn.v_proj.weight': 'attn_v.weight',
  'self_attn.o_proj.weight': 'attn_output.weight',
  'mlp.gate_proj.weight': 'ffn_gate.weight',
  'mlp.up_proj.weight': 'ffn_up.weight',
  'mlp.down_proj.weight': 'ffn_down.weight',
}

function ggufName(name: string): string {
  const [, layer, part] = /^model\.layers\.(\d+)\.(.+)$/.exec(name) ?? []
  return layer === undefined ? NAMES[name] : `blk.${layer}.${NAMES[part]}`
}

async function readTensor(
  file: LargeFile,
  tensors: ReadonlyMap<string, GgufTensor>,
  name: string,
): Promise<FloatTensor> {
  const tensor = tensors.get(name)
  if (!tensor) throw malformed(`${file.path} has no tensor ${name}`)
  return { shape: tensor.shape, data: tensor.type.toFloats(await file.read(tensor.start, tensor.bytes)) }
}

/** How many heads a matrix has whose rows RoPE turns. */
function rotatedHeads(config: ModelConfig, name: string): number | undefined {
  if (name.endsWith('q_proj.weight')) return config.heads
  if (name.endsWith('k_proj.weight')) return config.kvHeads
  return undefined
}

/** llama.cpp puts the two components of a rotated pair side by side; the project keeps them half a head apart. */
function rotateHalfOrder({ shape, data }: FloatTensor, heads: number): FloatTensor {
  const [rows, cols] = shape
  const headDim = rows / heads
  const out = new Float32Array(data.length)
  for (let row = 0; row < rows; row++) {
    const inHead = row % headDim
    const to = row - inHead + (inHead >> 1) + (inHead & 1) * (headDim / 2)
    out.set(data.subarray(row * cols, (row + 1) * cols), to * cols)
  }
  return { shape, data: out }
}

function encodeText(text: string | undefined): Uint8Array<ArrayBuffer> | undefined {
  return text === undefined ? undefined : new TextEncoder().encode(text)
}
