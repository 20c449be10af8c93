/**
 * @module
 * `weights-tool verify`: are all bytes of a pack what its manifest says?
 */
import { SparsedgeError } from '@sparsedge/engine/errors'
import { Command } from 'commander'
import { openPackDirectory } from '../pack-directory.ts'
import { objectCount, verifyPack } from '../verify.ts'
import { megabytes, printable } from './format.ts'
import { progressBar } from './progress.ts'

const EXAMPLES = `
Reads every trunk shard, bundle and text file, and hashes each expert inside its bundle. All faults are listed; the
exit code is 1 if there is one.

Example:
  $ weights-tool verify models/smollm2-135m-dsmoe`

export function verifyCommand(): Command {
  return new Command('verify')
    .description('hash every object of a pack again')
    .argument('<pack>', 'pack directory')
    .addHelpText('after', EXAMPLES)
    .action(runVerify)
}

async function runVerify(path: string): Promise<void> {
  const { manifest, store } = await openPackDirectory(path)
  const bar = progressBar(objectCount(manifest), 'objects')
  const { objects, bytes, faults } = await verifyPack(manifest, store, () => bar.step(1, '')).finally(
    bar.stop,
  )
  for (const { code, message } of faults) console.log(printable(`${code}: ${message}`))
  if (faults.length > 0) {
    const message = `${faults.length} of ${objects} objects of ${manifest.name} are wrong`
    throw new SparsedgeError(faults[0].code, message, {}, { cause: faults[0] })
  }
  const experts = manifest.config.layers * manifest.config.experts
  console.log(
    `${manifest.name}: ${objects} objects and ${experts} experts in them are as they should be, ${megabytes(bytes)}`,
  )
}
