/**
 * @module
 * `weights-tool unpack`: a pack → a checkpoint directory.
 */
import { SparsedgeError } from '@sparsedge/engine/errors'
import { Command, Option } from 'commander'
import { entriesOf, openPackDirectory } from '../pack-directory.ts'
import { unpack } from '../unpack.ts'
import { weightCount } from './format.ts'
import { progressBar } from './progress.ts'

const EXAMPLES = `
Gives config.json, model.safetensors, tokenizer.json and the chat template in the layout that the trainer writes; \`pack\`
takes it again. The weights are those that the pack serves, that is, rounded to its 4 or 8 bits.

Examples:
  $ weights-tool unpack models/smollm2-135m-dsmoe --out checkpoint
  $ weights-tool unpack packs/mine --out checkpoint --dtype F16`

export function unpackCommand(): Command {
  return new Command('unpack')
    .description('turn a pack back into a checkpoint directory')
    .argument('<pack>', 'pack directory')
    .requiredOption('-o, --out <directory>', 'where the checkpoint goes; must be new or empty')
    .addOption(
      new Option('--dtype <type>', 'of the matrices; vectors and gates stay F32')
        .choices(['F32', 'F16'])
        .default('F32'),
    )
    .addHelpText('after', EXAMPLES)
    .action(runUnpack)
}

async function runUnpack(path: string, { out, dtype }: { out: string; dtype: 'F32' | 'F16' }): Promise<void> {
  const directory = await openPackDirectory(path)
  if ((await entriesOf(out)).length > 0) {
    throw new SparsedgeError('invalid_request', `${out} is not empty; choose another --out`)
  }
  const bar = progressBar(Math.ceil(weightCount(directory.manifest.config) / 1e6), 'M weights')
  const onTensor = (name: string, count: number) => bar.step(count / 1e6, name)
  await unpack(directory, out, { dtype, onTensor }).finally(bar.stop)
  console.log(`${directory.manifest.name}: unpacked into ${out}`)
}
