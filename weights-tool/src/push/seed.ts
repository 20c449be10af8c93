/**
 * @module
 * Filling the local bucket, and knowing at once that it is filled: starting wrangler to ask takes seconds, so what was
 * pushed is noted in a file beside the bucket's own.
 */
import { readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { SparsedgeError } from '@sparsedge/engine/errors'
import { sha256 } from '@sparsedge/engine/store/sha256'
import { cannot } from '../files.ts'
import { manifestBytes } from '../pack.ts'
import { openPackDirectory, type PackDirectory } from '../pack-directory.ts'
import { type LocalOptions, localBuckets, localTarget } from './local.ts'
import { type PushOptions, type PushResult, push } from './push.ts'

/** How the names of the notes begin. */
const NOTE = 'pushed-'

/**
 * Pushes a pack directory into the local bucket unless exactly this pack was the last of its name that was pushed.
 *
 * @returns what was pushed; undefined if nothing had to be looked at
 * @throws SparsedgeError as {@link pushLocal} does, and `unknown_model` where there is no pack
 */
export async function seedLocal(
  packPath: string,
  options: LocalOptions & PushOptions,
): Promise<PushResult | undefined> {
  const pack = await openPackDirectory(packPath)
  const { path, content } = await note(pack, options)
  if ((await readFile(path, 'utf8').catch(() => undefined)) === content) return undefined
  return await pushLocal(pack, options)
}

/** Pushes a pack into the local bucket. @throws SparsedgeError as `push` does, `store_unavailable` */
export async function pushLocal(
  pack: PackDirectory,
  options: LocalOptions & PushOptions,
): Promise<PushResult> {
  const { path, content } = await note(pack, options)
  await rm(path, { force: true }).catch(cannot(`remove ${path}`))
  const target = await localTarget(options)
  try {
    const result = await push(pack, target, options)
    await writeFile(path, content).catch(cannot(`write ${path}`))
    return result
  } finally {
    await target.close()
  }
}

/** The names under which packs were pushed into the local bucket. */
export async function localModels(options: LocalOptions): Promise<string[]> {
  const files = await readdir(localBuckets(options)).catch(() => [])
  return files.filter((file) => file.startsWith(NOTE)).map((file) => file.slice(NOTE.length))
}

/** The note that a pack was pushed: the hashes of its manifest and of wrangler.toml, which names the bucket. */
async function note({ manifest }: PackDirectory, options: LocalOptions) {
  const config = await readFile(join(options.root, 'wrangler.toml')).catch((cause: unknown) => {
    const message = `there is no wrangler.toml in ${options.root}, so there is no local bucket`
    throw new SparsedgeError('store_unavailable', message, {}, { cause })
  })
  const hashes = [manifestBytes(manifest), new Uint8Array(config)].map(sha256)
  return {
    path: join(localBuckets(options), NOTE + manifest.name),
    content: (await Promise.all(hashes)).join('\n'),
  }
}
