/**
 * @module
 * A pack as files: `manifest.json` and `shards/<sha256>`, without the expert shards, whose bytes the bundles hold.
 */
import { mkdir, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { SparsedgeError } from '@sparsedge/engine/errors'
import { type Manifest, parseManifest } from '@sparsedge/engine/pack/manifest'
import { shardKey } from '@sparsedge/engine/store/store'
import { manifestBytes, type PackObject } from './pack.ts'

export interface PackDirectory {
  readonly path: string
  readonly manifest: Manifest
  /** @throws SparsedgeError `shard_missing` */
  read(hash: string): Promise<Uint8Array<ArrayBuffer>>
}

/** @throws SparsedgeError `unknown_model` where there is no pack, or as parseManifest does */
export async function openPackDirectory(path: string): Promise<PackDirectory> {
  let bytes: Uint8Array
  try {
    bytes = await readFile(join(path, 'manifest.json'))
  } catch (cause) {
    const message = `${path} is not a pack: it has no manifest.json`
    throw new SparsedgeError('unknown_model', message, {}, { cause })
  }
  const manifest = parseManifest(bytes)
  return {
    path,
    manifest,
    async read(hash) {
      try {
        return new Uint8Array(await readFile(join(path, shardKey(hash))))
      } catch (cause) {
        const message = `${join(path, shardKey(hash))} is missing; pack the model again`
        throw new SparsedgeError('shard_missing', message, { model: manifest.name, shard: hash }, { cause })
      }
    },
  }
}

/**
 * Writes a pack's objects as they come; the directory appears when all of it is there, never half a pack.
 *
 * @param replace whether a pack that stands there already makes way
 * @throws SparsedgeError `invalid_request` if something else stands there, or a pack and not `replace`
 */
export async function packDirectoryWriter(path: string, replace: boolean) {
  const existing = await readdir(path).catch(() => [])
  if (existing.length > 0 && !isPack(existing)) {
    throw new SparsedgeError('invalid_request', `${path} holds other files than a pack; choose another --out`)
  }
  if (existing.length > 0 && !replace) {
    throw new SparsedgeError('invalid_request', `${path} holds a pack already; --force replaces it`)
  }
  const partial = `${path}.partial`
  await rm(partial, { recursive: true, force: true })
  await mkdir(join(partial, 'shards'), { recursive: true })
  return {
    async write({ kind, hash, bytes }: PackObject): Promise<void> {
      if (kind !== 'expert') await writeFile(join(partial, shardKey(hash)), bytes)
    },
    async finish(manifest: Manifest): Promise<void> {
      await writeFile(join(partial, 'manifest.json'), manifestBytes(manifest))
      await rm(path, { recursive: true, force: true })
      await rename(partial, path)
    },
    abandon: () => rm(partial, { recursive: true, force: true }),
  }
}

function isPack(entries: readonly string[]): boolean {
  return entries.every((entry) => entry === 'manifest.json' || entry === 'shards')
}
