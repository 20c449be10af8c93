/**
 * @module
 * A directory as a target: for a static file server, or for `fsStore`.
 */
import { randomUUID } from 'node:crypto'
import { mkdir, rename, rm, stat, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { HASH } from '@sparsedge/engine/store/store'
import { cannot, codeOf } from '../files.ts'
import { entriesOf } from '../pack-directory.ts'
import type { PushTarget } from './push.ts'

export function directoryTarget(directory: string): PushTarget {
  return {
    async shards() {
      const sizes = new Map<string, number>()
      for (const name of await entriesOf(join(directory, 'shards'))) {
        if (!HASH.test(name)) continue
        const key = `shards/${name}`
        const path = join(directory, key)
        const found = await stat(path).catch((cause: unknown) =>
          // Somebody else may clean up here.
          codeOf(cause) === 'ENOENT' ? undefined : cannot(`look at ${path}`)(cause),
        )
        if (found) sizes.set(key, found.size)
      }
      return sizes
    },
    async put({ key, bytes }) {
      const path = join(directory, key)
      // A reader sees all of a file or none of it, and two pushes at once do not write into each other's.
      const partial = `${path}.${randomUUID()}.partial`
      try {
        await mkdir(dirname(path), { recursive: true })
        await writeFile(partial, bytes)
        await rename(partial, path)
      } catch (cause) {
        await rm(partial, { force: true }).catch(() => {})
        cannot(`write ${path}`)(cause)
      }
    },
    close: async () => {},
  }
}
