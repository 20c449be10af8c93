/**
 * @module
 * A pack as files: `manifest.json` and `shards/<sha256>`, without the expert shards, whose bytes the bundles hold.
 */
import { mkdir, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { SparsedgeError } from '@sparsedge/engine/errors'
import { type Manifest, parseManifest, type ShardRef } from '@sparsedge/engine/pack/manifest'
import { fsStore } from '@sparsedge/engine/store/fs'
import { type ShardStore, shardKey } from '@sparsedge/engine/store/store'
import { verified } from '@sparsedge/engine/store/verified'
import { manifestBytes, type PackObject } from './pack.ts'

export interface PackDirectory {
  readonly path: string
  readonly manifest: Manifest
  /** Serves the trunk's shards, the bundles and the text files. */
  readonly store: ShardStore
}

/** @throws SparsedgeError `unknown_model` where there is no pack, or as parseManifest does */
export async function openPackDirectory(path: string): Promise<PackDirectory> {
  const bytes = await readFile(join(path, 'manifest.json')).catch((cause: unknown) => {
    throw new SparsedgeError('unknown_model', `${path} is not a pack: it has no manifest.json`, {}, { cause })
  })
  return { path, manifest: parseManifest(bytes), store: fsStore(path) }
}

/** @throws SparsedgeError what the store throws, `shard_hash_mismatch` */
export async function readShard(
  store: ShardStore,
  { hash, bytes }: ShardRef,
): Promise<Uint8Array<ArrayBuffer>> {
  const into = new Uint8Array(bytes)
  await verified(store).read(hash, [{ hash, bytes: into }])
  return into
}

/**
 * Writes a pack's objects as they come; the directory appears when all of it is there, never half a pack.
 *
 * @param replace whether a pack that stands there already makes way
 * @throws SparsedgeError `invalid_request` if something else stands there, or a pack and not `replace`
 */
export async function packDirectoryWriter(path: string, replace: boolean) {
  const existing = await readdir(path).catch(() => [])
  if (!existing.every((entry) => entry === 'manifest.json' || entry === 'shards')) {
    throw new SparsedgeError('invalid_request', `${path} holds other files than a pack; choose another --out`)
  }
  if (existing.length > 0 && !replace) {
    throw new SparsedgeError('invalid_request', `${path} holds a pack already; --force replaces it`)
  }
  const partial = `${resolve(path)}.partial`
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
