/**
 * @module
 * The model that ships, put where servers read it: a local R2 bucket and a directory. A global set-up of the parts that
 * start servers (vitest.config.ts): each gets a fresh copy, which goes away with it.
 */
import { cp, mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { openPackDirectory } from '@sparsedge/weights-tool/pack-directory'
import { directoryTarget } from '@sparsedge/weights-tool/push/directory'
import { push } from '@sparsedge/weights-tool/push/push'
import { seedLocal } from '@sparsedge/weights-tool/push/seed'
import type { TestProject } from 'vitest/node'
import { ROOT } from './processes.ts'

export const MODEL = 'smollm2-135m-dsmoe'

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

/** Filling a bucket takes ten seconds, copying a filled one takes one: it is kept, and nobody but this file touches it. */
const FILLED = join(ROOT, '.wrangler', 'test-state')

export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const folder = await mkdtemp(join(tmpdir(), 'sparsedge-shipped-'))
  const [state, directory] = [join(folder, 'state'), join(folder, 'directory')]
  const pack = await openShipped()
  await push(pack, directoryTarget(directory))
  await seedLocal(pack.path, { root: ROOT, state: FILLED })
  await cp(FILLED, state, { recursive: true })
  project.provide('state', state)
  project.provide('directory', directory)
  return () => rm(folder, { recursive: true, force: true })
}
