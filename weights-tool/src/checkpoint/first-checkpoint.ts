/**
 * @module
 * The layout of the first DS-MoE checkpoint, SmolLM2-135M upcycled: int4 parts in safetensors, `NAME.q` with two codes a
 * byte and `NAME.s` with one signed bfloat16 scale per 32 inputs, value (code - 8) · scale; query and key rows already in
 * rotate-half order, FFN rows in expert order. Newer checkpoints come in the canonical layout (huggingface.ts).
 */
import { join } from 'node:path'
import type { ModelConfig } from '@sparsedge/engine/model/config'
import { ropeFrequencies } from '@sparsedge/engine/model/rope'
import { tensorShape } from '@sparsedge/engine/model/weights'
import { z } from 'zod'
import {
  type Checkpoint,
  count,
  type ImportOptions,
  malformed,
  modelConfig,
  parseJson,
  readText,
  textFiles,
} from './checkpoint.ts'
import { floatsFromBF16 } from './numbers.ts'
import { openSafetensors, type TensorFile } from './safetensors.ts'

const Measured = z.looseObject({ ppl: z.number(), kl: z.number(), share: z.number() })

/** The parts of its config.json that matter; `int4` tells it apart from other layouts. */
export const FirstConfig = z.looseObject({
  name: z.string(),
  arch: z.looseObject({
    layers: count,
    d_model: count,
    heads: count,
    kv_heads: count,
    head_dim: count,
    experts: count,
    expert_units: count,
    vocab: count,
    tied_embedding: z.literal(true),
    rope_theta: z.number().positive(),
    rmsnorm_eps: z.number().positive(),
    trained_context: count,
  }),
  int4: z.record(z.string(), z.string()),
  lookahead: z.boolean(),
  measured_int4: z.looseObject({ val_text: Measured, val_chat: Measured, docs: Measured }),
})
type FirstConfig = z.infer<typeof FirstConfig>

/** <|endoftext|> and <|im_end|>. */
const EOS_TOKENS = [0, 2]

/** ChatML with SmolLM2's own default system prompt, as the model that was upcycled has it. */
const CHAT_TEMPLATE = `{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}`

/** @throws SparsedgeError `checkpoint_malformed` */
export async function openFirstCheckpoint(directory: string, options: ImportOptions): Promise<Checkpoint> {
  const first = parseJson(FirstConfig, await readText(join(directory, 'config.json')), 'config.json')
  const text = await textFiles(options, {
    tokenizer: () => readText(join(directory, 'tokenizer.json')),
    chatTemplate: async () => new TextEncoder().encode(CHAT_TEMPLATE),
  })
  const file = await openSafetensors(join(directory, 'model.safetensors'))
  const config = configOf(first)
  return {
    weights: {
      config,
      async tensor(name) {
        const shape = tensorShape(config, name)
        if (!shape) throw malformed(`this model has no tensor ${name}`)
        const data =
          name === 'rope.inv_freq'
            ? ropeFrequencies({ theta: first.arch.rope_theta, headDim: config.headDim }).invFreq
            : await readTensor(file, config, name)
        if (data.length !== shape.reduce((product, n) => product * n, 1)) {
          throw malformed(`tensor ${name} holds ${data.length} weights instead of [${shape}]`)
        }
        return { shape, data }
      },
    },
    text,
    provenance: { source: first.name },
    quality: qualityOf(first),
    close: () => file.close(),
  }
}

function configOf({ arch, lookahead }: FirstConfig): ModelConfig {
  return modelConfig({
    layers: arch.layers,
    hidden: arch.d_model,
    heads: arch.heads,
    kvHeads: arch.kv_heads,
    headDim: arch.head_dim,
    experts: arch.experts,
    expertUnits: arch.expert_units,
    sharedUnits: 0,
    vocab: arch.vocab,
    tiedHead: true,
    normEps: arch.rmsnorm_eps,
    ropeScale: 1,
    context: arch.trained_context,
    gate: {
      kind: 'clamped_linear',
      source: lookahead ? 'previous' : 'own',
      selection: { by: 'positive' },
    },
    eosTokens: EOS_TOKENS,
  })
}

function qualityOf({ measured_int4: measured }: FirstConfig): Checkpoint['quality'] {
  const row = (text: string, { share, ppl, kl }: z.infer<typeof Measured>) => {
    return { share, text, perplexity: ppl, kl }
  }
  return [row('text', measured.val_text), row('chat', measured.val_chat), row('docs', measured.docs)]
}

/** A tensor under the project's name, found under this layout's. */
async function readTensor(file: TensorFile, config: ModelConfig, name: string): Promise<Float32Array> {
  const keys = config.kvHeads * config.headDim
  const units = config.experts * config.expertUnits
  const floats = async (theirs: string) => (await file.floats(theirs)).data
  if (name === 'model.embed_tokens.weight') return readInt4(file, 'embed')
  if (name === 'model.norm.weight') return floats('norm')
  const [, layer, part] = /^model\.layers\.(\d+)\.(.+)$/.exec(name) ?? []
  const at = `layers.${layer}`
  switch (part) {
    case 'input_layernorm.weight':
      return floats(`${at}.attn_norm`)
    case 'post_attention_layernorm.weight':
      return floats(`${at}.ffn_norm`)
    case 'mlp.router.weight':
    case 'mlp.router.bias':
      return floats(`${at}.${part.replace('mlp.', '')}`)
    case 'self_attn.q_proj.weight':
      return readInt4(file, `${at}.attn_q`)
    case 'self_attn.k_proj.weight':
      return readInt4(file, `${at}.attn_kv`, 0, keys)
    case 'self_attn.v_proj.weight':
      return readInt4(file, `${at}.attn_kv`, keys, 2 * keys)
    case 'self_attn.o_proj.weight':
      return readInt4(file, `${at}.attn_o`)
    case 'mlp.gate_proj.weight':
      return readInt4(file, `${at}.ffn_gate_up`, 0, units)
    case 'mlp.up_proj.weight':
      return readInt4(file, `${at}.ffn_gate_up`, units, 2 * units)
    case 'mlp.down_proj.weight':
      return readInt4(file, `${at}.ffn_down`)
  }
  throw malformed(`this layout has no tensor ${name}`)
}

/** Rows `start` to `end` of a matrix in int4 parts. */
async function readInt4(file: TensorFile, name: string, start = 0, end?: number): Promise<Float32Array> {
  const codes = file.info(`${name}.q`)
  const scales = file.info(`${name}.s`)
  const [rows, bytesPerRow] = codes.shape
  if (
    codes.dtype !== 'U8' ||
    scales.dtype !== 'BF16' ||
    scales.shape.join() !== `${rows},${bytesPerRow / 16}`
  ) {
    throw malformed(`${name}.q and ${name}.s do not fit together`)
  }
  const q = (await file.bytes(`${name}.q`)).subarray(start * bytesPerRow, (end ?? rows) * bytesPerRow)
  const s = floatsFromBF16(await file.bytes(`${name}.s`)).subarray((start * bytesPerRow) / 16)
  const data = new Float32Array(2 * q.length)
  for (let j = 0; j < q.length; j++) {
    const scale = s[j >> 4]
    data[2 * j] = ((q[j] & 15) - 8) * scale
    data[2 * j + 1] = ((q[j] >> 4) - 8) * scale
  }
  return data
}
