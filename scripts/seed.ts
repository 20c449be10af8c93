/**
 * @module
 * Part of `npm start`: puts every pack under models/ into the local R2 bucket, unless it is there already.
 */
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { seedLocal } from '@sparsedge/weights-tool/push/seed'

const root = fileURLToPath(new URL('..', import.meta.url))
const packs = await readdir(join(root, 'models'), { withFileTypes: true })

for (const { name } of packs.filter((entry) => entry.isDirectory())) {
  // Nothing is said where nothing has to be done.
  let said = false
  const onBytes = () => {
    if (!said) console.log(`Putting ${name} into the local bucket …`)
    said = true
  }
  await seedLocal(join(root, 'models', name), { root, onBytes })
}
