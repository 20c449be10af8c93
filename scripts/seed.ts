/**
 * @module
 * Part of `npm start`: puts every pack under models/ into the local R2 bucket, unless it is there already, and sees that
 * the Worker will find what the environment asks of it. wrangler would say it in pages, or the first client would hear it.
 */
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { localModels, seedLocal } from '@sparsedge/weights-tool/push/seed'
import { readSettings, Settings } from '../functions/src/entries/settings.ts'

const root = fileURLToPath(new URL('..', import.meta.url))

try {
  // What is not set, wrangler.toml sets.
  readSettings(Settings.partial(), process.env)
  await seedModels()
  await findModel(process.env.MODEL)
} catch (error) {
  console.error(error instanceof Error ? error.message : error)
  process.exitCode = 1
}

async function seedModels(): Promise<void> {
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
}

async function findModel(name: string | undefined): Promise<void> {
  if (!name) return
  const models = await localModels({ root })
  if (models.includes(name)) return
  throw new Error(
    `There is no model "${name}" in the local bucket, only: ${models.join(', ')}. ` +
      'Put its pack there: npm run weights-tool -- push PACK --to local',
  )
}
