/**
 * @module
 * The model that ships, put where servers read it: a local R2 bucket and a directory. A global set-up of the parts that
 * start servers (vitest.config.ts), so that each part does it once; the folder goes away with it.
 */
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { openPackDirectory } from '@sparsedge/weights-tool/pack-directory'
import { directoryTarget } from '@sparsedge/weights-tool/push/directory'
import { push } from '@sparsedge/weights-tool/push/push'
import { pushLocal } from '@sparsedge/weights-tool/push/seed'
import type { TestProject } from 'vitest/node'
import { ROOT } from './processes.ts'

export const MODEL = 'smollm2-135m-dsmoe-50'

declare module 'vitest' {
  interface ProvidedContext {
    /** What `wrangler dev --persist-to` takes, with the model in its bucket. Whoever changes anything takes a copy. */
    readonly state: string
    /** The model as a directory of objects: `shards/…`, `models/…`. */
    readonly directory: string
  }
}

/** The model as the repository holds it. */
export const openShipped = () => openPackDirectory(join(ROOT, 'models', MODEL))

export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const folder = await mkdtemp(join(tmpdir(), 'sparsedge-shipped-'))
  const [state, directory] = [join(folder, 'state'), join(folder, 'directory')]
  const pack = await openShipped()
  await push(pack, directoryTarget(directory))
  await pushLocal(pack, { root: ROOT, state })
  project.provide('state', state)
  project.provide('directory', directory)
  return () => rm(folder, { recursive: true, force: true })
}
