/**
 * @module
 * `weights-tool pack`: a checkpoint → a pack directory.
 */
import { basename, resolve } from 'node:path'
import { SparsedgeError } from '@sparsedge/engine/errors'
import { TILE_ROWS } from '@sparsedge/engine/pack/layout'
import type { Manifest } from '@sparsedge/engine/pack/manifest'
import { Command, InvalidArgumentError, Option } from 'commander'
import packageJson from '../../package.json' with { type: 'json' }
import { type Checkpoint, modelConfig } from '../checkpoint/checkpoint.ts'
import { openCheckpoint } from '../checkpoint/open.ts'
import { type PackObject, type PackOptions, pack } from '../pack.ts'
import { packDirectoryWriter } from '../pack-directory.ts'
import { megabytes, weightCount } from './format.ts'
import { progressBar } from './progress.ts'

interface Flags {
  readonly out: string
  readonly name?: string
  readonly experts?: number
  readonly context?: number
  readonly embedding: PackOptions['layouts']['embedding']
  readonly fineRows?: number
  readonly attention: PackOptions['layouts']['attention']
  readonly expertsLayout: PackOptions['layouts']['experts']
  readonly tokenizer?: string
  readonly chatTemplate?: string
  readonly source?: string
  readonly licence?: string
  readonly force?: true
}

const EXAMPLES = `
A checkpoint is one of
  a GGUF file of a Llama-like model (F32, F16, BF16, Q8_0, Q4_0, Q4_1)
  a Hugging Face directory: config.json, *.safetensors, tokenizer.json
  a DS-MoE directory as the trainer and \`unpack\` write it

Examples:
  $ weights-tool pack SmolLM2-135M-Instruct.Q4_1.gguf --out packs/smollm2-135m
  $ weights-tool pack TinyLlama-1.1B-Chat --out packs/tinyllama --experts 88
  $ weights-tool pack checkpoint --out packs/mine --embedding q8 --licence Apache-2.0

Layouts: q4 is 4.5 bits a weight, q8 is 9. The embedding (and the head) decides most of the quality: by default it
is q4 only where its error is below 1 %, that is where the checkpoint was 4-bit already. In between:
\`--fine-rows 16384\` keeps 8 bits for the first 16,384 tokens and 4 for the others. Tokenizers list their
frequent tokens first, so that most of the quality stays.`

export function packCommand(): Command {
  const layouts = ['q4', 'q8']
  return new Command('pack')
    .description('turn a checkpoint into a pack: quantised, cut into experts, every object named by its hash')
    .argument('<checkpoint>', 'GGUF file or checkpoint directory')
    .requiredOption('-o, --out <directory>', 'where the pack goes')
    .option('--name <name>', 'the name it is served under (default: that of the directory)')
    .option('--experts <count>', 'cut a dense FFN into this many experts (default: 64 units each)', positive)
    .option('--context <tokens>', 'longest sequence to serve (default: what the checkpoint says)', positive)
    .addOption(
      new Option('--embedding <layout>', 'layout of embedding and head')
        .choices(['auto', ...layouts])
        .default('auto'),
    )
    .option(
      '--fine-rows <count>',
      'of a q8 embedding and head, the rows that have 8 bits (default: all)',
      tiles,
    )
    .addOption(new Option('--attention <layout>', 'layout of attention').choices(layouts).default('q4'))
    .addOption(
      new Option('--experts-layout <layout>', 'layout of routed and shared experts')
        .choices(layouts)
        .default('q4'),
    )
    .option('--tokenizer <file>', "a tokenizer.json instead of the checkpoint's")
    .option('--chat-template <file>', "a Jinja template instead of the checkpoint's")
    .option('--source <text>', 'where the weights come from, for the manifest')
    .option('--licence <spdx>', 'licence of the weights, for the manifest')
    .option('--force', 'replace a pack that stands there already')
    .addHelpText('after', EXAMPLES)
    .action(runPack)
}

async function runPack(path: string, flags: Flags): Promise<void> {
  if (flags.embedding === 'q4' && flags.fineRows !== undefined) {
    const message = '--embedding q4 leaves no rows for --fine-rows to keep at 8 bits; leave one of them out'
    throw new SparsedgeError('invalid_request', message)
  }
  const name = flags.name ?? basename(resolve(flags.out)).toLowerCase()
  const checkpoint = await openCheckpoint(path, flags)
  try {
    const writer = await packDirectoryWriter(flags.out, flags.force === true)
    try {
      const { manifest, bytes } = await packCheckpoint(name, checkpoint, flags, writer.write)
      await writer.finish(manifest)
      console.log(`${name}: ${megabytes(bytes)} in ${flags.out}`)
    } catch (error) {
      await writer.abandon()
      throw error
    }
  } finally {
    await checkpoint.close()
  }
}

/** Packs under a progress bar. */
async function packCheckpoint(
  name: string,
  { weights, text, provenance, profile, quality }: Checkpoint,
  flags: Flags,
  write: (object: PackObject) => Promise<void>,
): Promise<{ manifest: Manifest; bytes: number }> {
  const config = modelConfig({
    ...weights.config,
    ...(flags.context !== undefined && { context: flags.context }),
  })
  const bar = progressBar(Math.ceil(weightCount(config) / 1e6), 'M weights')
  let bytes = 0
  const options: PackOptions = {
    name,
    layouts: {
      embedding: flags.embedding,
      ...(flags.fineRows !== undefined && { fineRows: flags.fineRows }),
      attention: flags.attention,
      experts: flags.expertsLayout,
    },
    text,
    provenance: {
      source: flags.source ?? provenance.source,
      licence: flags.licence ?? provenance.licence ?? 'not stated',
      tool: `weights-tool ${packageJson.version}`,
    },
    ...(profile && { profile }),
    ...(quality && { quality }),
    onTensor: (tensor, count) => bar.step(count / 1e6, tensor),
  }
  const manifest = await pack({ ...weights, config }, options, async (object) => {
    if (object.kind !== 'expert') bytes += object.bytes.length
    await write(object)
  }).finally(bar.stop)
  return { manifest, bytes }
}

function positive(text: string): number {
  const value = Number(text)
  if (!Number.isInteger(value) || value < 1)
    throw new InvalidArgumentError('a positive whole number is needed')
  return value
}

function tiles(text: string): number {
  const value = positive(text)
  if (value % TILE_ROWS !== 0) throw new InvalidArgumentError(`a multiple of ${TILE_ROWS} is needed`)
  return value
}
