/**
 * @module
 * A directory as a target: for a static file server, or for `fsStore`.
 */
import { mkdir, readdir, rename, stat, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import type { PushTarget } from './push.ts'

export function directoryTarget(directory: string): PushTarget {
  return {
    async shards() {
      const sizes = new Map<string, number>()
      const names = await readdir(join(directory, 'shards')).catch(() => [])
      for (const name of names) {
        const key = `shards/${name}`
        sizes.set(key, (await stat(join(directory, key))).size)
      }
      return sizes
    },
    async put({ key, bytes }) {
      const path = join(directory, key)
      await mkdir(dirname(path), { recursive: true })
      // A reader sees all of a file or none of it.
      await writeFile(`${path}.partial`, bytes)
      await rename(`${path}.partial`, path)
    },
    close: async () => {},
  }
}
