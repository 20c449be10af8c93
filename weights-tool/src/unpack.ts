/**
 * @module
 * A pack → the canonical DS-MoE checkpoint directory (docs/pack-format.md), which `pack` takes again.
 */
import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { tensorNames, tensorShape } from '@sparsedge/engine/model/weights'
import type { Manifest } from '@sparsedge/engine/pack/manifest'
import { packWeights } from '@sparsedge/engine/pack/weights'
import type { z } from 'zod'
import type { DsMoe } from './checkpoint/huggingface.ts'
import { writeSafetensors } from './checkpoint/safetensors.ts'
import { cannot } from './files.ts'
import { type PackDirectory, readShard } from './pack-directory.ts'

export interface UnpackOptions {
  /** Of the matrices that the pack quantises; all else stays F32. */
  readonly dtype: 'F32' | 'F16'
  /** Called after each tensor, with its number of weights. */
  readonly onTensor?: (name: string, weights: number) => void
}

/**
 * Writes config.json, model.safetensors, tokenizer.json and, where there is one, chat_template.jinja.
 *
 * @param directory is made where it does not exist
 * @throws SparsedgeError what the store throws; `checkpoint_unsupported` for a weight that is too large for F16;
 * `store_unavailable` where nothing can be written
 */
export async function unpack(
  { manifest, store }: PackDirectory,
  directory: string,
  { dtype, onTensor }: UnpackOptions,
): Promise<void> {
  const { config, text, quantisation } = manifest
  await mkdir(directory, { recursive: true }).catch(cannot(`make ${directory}`))
  const write = (file: string, content: Uint8Array | string) => {
    const path = join(directory, file)
    return writeFile(path, content).catch(cannot(`write ${path}`))
  }
  const weights = packWeights(manifest, store)
  const quantised = new Set(quantisation.map(({ name }) => name))
  const tensors = tensorNames(config).map((name) => ({
    name,
    dtype: quantised.has(name) ? dtype : ('F32' as const),
    shape: tensorShape(config, name) ?? [],
  }))
  await writeSafetensors(join(directory, 'model.safetensors'), tensors, async (name) => {
    const { data } = await weights.tensor(name)
    onTensor?.(name, data.length)
    return data
  })
  await write('tokenizer.json', await readShard(store, text.tokenizer))
  if (text.chatTemplate) await write('chat_template.jinja', await readShard(store, text.chatTemplate))
  // Last, since without it the directory is no checkpoint.
  await write('config.json', `${JSON.stringify(canonicalConfig(manifest), null, 2)}\n`)
}

function canonicalConfig({ config, profile, quality, provenance }: Manifest): z.input<typeof DsMoe> {
  return {
    model_type: 'ds_moe',
    vocab_size: config.vocab,
    hidden_size: config.hidden,
    intermediate_size: config.sharedUnits + config.experts * config.expertUnits,
    num_hidden_layers: config.layers,
    num_attention_heads: config.heads,
    num_key_value_heads: config.kvHeads,
    head_dim: config.headDim,
    max_position_embeddings: config.context,
    rms_norm_eps: config.normEps,
    hidden_act: 'silu',
    tie_word_embeddings: config.tiedHead,
    // The frequencies are a tensor: a pack no longer knows the formula that they came from.
    rope_scale: config.ropeScale,
    num_experts: config.experts,
    expert_units: config.expertUnits,
    shared_units: config.sharedUnits,
    gate: config.gate,
    ...(config.bosToken !== undefined && { bos_token_id: config.bosToken }),
    eos_token_id: config.eosTokens,
    ...(profile && { profile }),
    ...(quality && { quality }),
    provenance: { source: provenance.source, licence: provenance.licence },
  }
}
