/**
 * @module
 * Checkpoint directories as Hugging Face lays them out, Llama architecture: config.json, model.safetensors (or shards
 * with an index), tokenizer.json. The canonical DS-MoE checkpoint (`model_type: "ds_moe"`, docs/pack-format.md) is the same
 * with a few fields and the routers more; a dense model is cut into experts that are always on.
 */
import { readFile } from 'node:fs/promises'
import { basename, join, resolve } from 'node:path'
import { GateConfig, type ModelConfig } from '@sparsedge/engine/model/config'
import { type RopeFrequencies, RopeScaling, ropeFrequencies } from '@sparsedge/engine/model/rope'
import { tensorShape, type WeightSource } from '@sparsedge/engine/model/weights'
import { Manifest } from '@sparsedge/engine/pack/manifest'
import { z } from 'zod'
import { cannot, codeOf } from '../files.ts'
import {
  type Checkpoint,
  count,
  type ImportOptions,
  malformed,
  modelConfig,
  parseJson,
  readText,
  splitDense,
  textFiles,
  unsupported,
} from './checkpoint.ts'
import { openSafetensors, type TensorFile } from './safetensors.ts'

const tokenId = z.int().nonnegative()
const tokenIds = z.union([tokenId, z.array(tokenId)]).nullish()

const Llama = z.looseObject({
  model_type: z.literal('llama'),
  vocab_size: count,
  hidden_size: count,
  intermediate_size: count,
  num_hidden_layers: count,
  num_attention_heads: count,
  num_key_value_heads: count.nullish(),
  head_dim: count.nullish(),
  max_position_embeddings: count,
  rms_norm_eps: z.number().positive(),
  hidden_act: z.string().default('silu'),
  attention_bias: z.boolean().default(false),
  mlp_bias: z.boolean().default(false),
  tie_word_embeddings: z.boolean().default(false),
  rope_theta: z.number().positive().default(10_000),
  rope_scaling: z.looseObject({}).nullish(),
  /** Where transformers 5 keeps both. */
  rope_parameters: z.looseObject({ rope_theta: z.number().positive() }).nullish(),
  bos_token_id: tokenId.nullish(),
  eos_token_id: tokenIds,
})

/** config.json of the canonical DS-MoE checkpoint: what the trainer and `unpack` write. */
export const DsMoe = Llama.extend({
  model_type: z.literal('ds_moe'),
  num_experts: count,
  expert_units: count,
  shared_units: z.int().nonnegative().default(0),
  gate: GateConfig,
  /** Where the frequencies are a tensor, `rope.inv_freq`, this goes with it. */
  rope_scale: z.number().positive().default(1),
  profile: Manifest.shape.profile,
  quality: Manifest.shape.quality,
  provenance: Manifest.shape.provenance.pick({ source: true, licence: true }).optional(),
})

const HuggingFaceConfig = z.discriminatedUnion('model_type', [Llama, DsMoe])
type HuggingFaceConfig = z.infer<typeof HuggingFaceConfig>

const FREQUENCIES = 'rope.inv_freq'

const GenerationConfig = z.looseObject({ eos_token_id: tokenIds })
const TokenizerConfig = z.looseObject({
  /** A template, or several of which one is called "default". */
  chat_template: z
    .union([z.string(), z.array(z.object({ name: z.string(), template: z.string() }))])
    .nullish(),
})

/** @throws SparsedgeError `checkpoint_malformed`, `checkpoint_unsupported` */
export async function openHuggingFace(directory: string, options: ImportOptions): Promise<Checkpoint> {
  const theirs = await readConfig(directory)
  const files = await openTensors(directory)
  try {
    const tokenizerConfig = await optionalJson(directory, 'tokenizer_config.json', TokenizerConfig)
    const text = await textFiles(options, {
      tokenizer: () => readText(join(directory, 'tokenizer.json')),
      chatTemplate: () => chatTemplateOf(directory, tokenizerConfig),
    })
    // A checkpoint may bring its frequencies, so that no formula has to be known for them.
    const rope =
      theirs.model_type === 'ds_moe' && files.has(FREQUENCIES)
        ? { invFreq: (await files.floats(FREQUENCIES)).data, ropeScale: theirs.rope_scale }
        : ropeOf(theirs)
    const config = modelConfig({
      ...shapeOf(theirs, options, rope.ropeScale),
      ...(await tokensOf(directory, theirs)),
    })
    return {
      weights: weightsOf(config, files, rope.invFreq),
      text,
      provenance: { source: basename(resolve(directory)) },
      ...(theirs.model_type === 'ds_moe' && knownOf(theirs)),
      close: files.close,
    }
  } catch (error) {
    await files.close()
    throw error
  }
}

// ---- config.json ----------------------------------------------------------------------------------------------------

async function readConfig(directory: string): Promise<HuggingFaceConfig> {
  const bytes = await readText(join(directory, 'config.json'))
  const { model_type } = parseJson(z.looseObject({ model_type: z.string() }), bytes, 'config.json')
  if (model_type !== 'llama' && model_type !== 'ds_moe') {
    throw unsupported(`${directory} is a ${model_type} model; only llama and ds_moe can be packed`)
  }
  const config = parseJson(HuggingFaceConfig, bytes, 'config.json')
  if (config.hidden_act !== 'silu') throw unsupported(`the activation is ${config.hidden_act}, not silu`)
  if (config.attention_bias || config.mlp_bias) throw unsupported('models with biases cannot be packed')
  return config
}

type Shape = Omit<ModelConfig, 'bosToken' | 'eosTokens'>

function shapeOf(theirs: HuggingFaceConfig, { experts }: ImportOptions, ropeScale: number): Shape {
  return {
    layers: theirs.num_hidden_layers,
    hidden: theirs.hidden_size,
    heads: theirs.num_attention_heads,
    kvHeads: theirs.num_key_value_heads ?? theirs.num_attention_heads,
    headDim: headDim(theirs),
    ...expertsOf(theirs, experts),
    vocab: theirs.vocab_size,
    tiedHead: theirs.tie_word_embeddings,
    normEps: theirs.rms_norm_eps,
    ropeScale,
    context: theirs.max_position_embeddings,
  }
}

/** What a DS-MoE checkpoint carries along for the manifest. */
function knownOf({ profile, quality, provenance }: z.infer<typeof DsMoe>) {
  return { ...(profile && { profile }), ...(quality && { quality }), ...(provenance && { provenance }) }
}

function headDim(theirs: HuggingFaceConfig): number {
  return theirs.head_dim ?? theirs.hidden_size / theirs.num_attention_heads
}

/** The frequencies by formula. */
function ropeOf(theirs: HuggingFaceConfig): RopeFrequencies {
  const scaling = RopeScaling.optional().safeParse(theirs.rope_parameters ?? theirs.rope_scaling ?? undefined)
  if (!scaling.success) {
    throw unsupported(
      `config.json: this RoPE scaling is not known:\n${z.prettifyError(scaling.error)}`,
      scaling.error,
    )
  }
  const theta = theirs.rope_parameters?.rope_theta ?? theirs.rope_theta
  return ropeFrequencies({ theta, headDim: headDim(theirs), scaling: scaling.data })
}

function expertsOf(theirs: HuggingFaceConfig, experts: number | undefined) {
  if (theirs.model_type === 'llama') {
    return { ...splitDense(theirs.intermediate_size, experts), sharedUnits: 0 }
  }
  const { num_experts, expert_units, shared_units, intermediate_size, gate } = theirs
  // What the trainer leaves in one piece has no gate to mind where it is cut.
  if (gate.kind === 'all' && num_experts === 1 && shared_units === 0) {
    return { ...splitDense(intermediate_size, experts), sharedUnits: 0 }
  }
  if (experts !== undefined && experts !== num_experts) {
    throw unsupported(`this model was trained with ${num_experts} experts; --experts cannot change that`)
  }
  if (shared_units + num_experts * expert_units !== intermediate_size) {
    throw malformed(
      `config.json: shared_units ${shared_units} + num_experts ${num_experts} x expert_units ${expert_units} ` +
        `is not intermediate_size ${intermediate_size}`,
    )
  }
  return { experts: num_experts, expertUnits: expert_units, sharedUnits: shared_units, gate }
}

// ---- Text files and tokens -----------------------------------------------------------------------------------------

async function chatTemplateOf(
  directory: string,
  tokenizerConfig: z.infer<typeof TokenizerConfig> | undefined,
): Promise<Uint8Array<ArrayBuffer> | undefined> {
  const file = await optional(directory, 'chat_template.jinja')
  if (file) return file
  const stated = tokenizerConfig?.chat_template
  const template =
    typeof stated === 'string' ? stated : stated?.find(({ name }) => name === 'default')?.template
  return template === undefined ? undefined : new TextEncoder().encode(template)
}

/** Tokens that end a generation may stand in two files. What a text begins with, tokenizer.json knows by itself. */
async function tokensOf(
  directory: string,
  { bos_token_id, eos_token_id }: HuggingFaceConfig,
): Promise<Pick<ModelConfig, 'bosToken' | 'eosTokens'>> {
  const generation = await optionalJson(directory, 'generation_config.json', GenerationConfig)
  const eosTokens = [...new Set([eos_token_id ?? [], generation?.eos_token_id ?? []].flat())]
  return { eosTokens, ...(typeof bos_token_id === 'number' && { bosToken: bos_token_id }) }
}

// ---- Tensors ----------------------------------------------------------------------------------------------------------

function weightsOf(config: ModelConfig, files: Tensors, invFreq: Float32Array): WeightSource {
  return {
    config,
    async tensor(name) {
      const shape = tensorShape(config, name)
      if (!shape) throw malformed(`this model has no tensor ${name}`)
      const tensor =
        name === FREQUENCIES ? { shape: [invFreq.length], data: invFreq } : await files.floats(name)
      if (tensor.shape.join() !== shape.join()) {
        throw malformed(`tensor ${name} is [${tensor.shape}]; by config.json it should be [${shape}]`)
      }
      return tensor
    },
  }
}

interface Tensors extends Pick<TensorFile, 'floats' | 'close'> {
  has(name: string): boolean
}

const Index = z.looseObject({
  weight_map: z.record(
    z.string(),
    z.string().regex(/^[^/\\]+\.safetensors$/, 'must be a file beside the index'),
  ),
})

/** One file, or several with an index. */
async function openTensors(directory: string): Promise<Tensors> {
  const index = await optionalJson(directory, 'model.safetensors.index.json', Index)
  if (!index) {
    const file = await openSafetensors(join(directory, 'model.safetensors'))
    const names = new Set(file.names)
    return { has: (name) => names.has(name), floats: file.floats, close: file.close }
  }
  const files = new Map<string, TensorFile>()
  const close = async () => {
    for (const file of files.values()) await file.close()
  }
  try {
    for (const name of new Set(Object.values(index.weight_map))) {
      files.set(name, await openSafetensors(join(directory, name)))
    }
  } catch (error) {
    await close()
    throw error
  }
  const home = new Map(Object.entries(index.weight_map))
  return {
    has: (name) => home.has(name),
    async floats(name) {
      const file = files.get(home.get(name) ?? '')
      if (!file) throw malformed(`model.safetensors.index.json does not list tensor ${name}`)
      return file.floats(name)
    },
    close,
  }
}

// ---- Files ------------------------------------------------------------------------------------------------------------

async function optional(directory: string, file: string): Promise<Uint8Array<ArrayBuffer> | undefined> {
  const path = join(directory, file)
  const bytes = await readFile(path).catch((cause: unknown) =>
    codeOf(cause) === 'ENOENT' ? undefined : cannot(`read ${path}`, 'checkpoint_malformed')(cause),
  )
  return bytes && new Uint8Array(bytes)
}

async function optionalJson<Schema extends z.ZodType>(
  directory: string,
  file: string,
  schema: Schema,
): Promise<z.output<Schema> | undefined> {
  const bytes = await optional(directory, file)
  return bytes && parseJson(schema, bytes, file)
}
