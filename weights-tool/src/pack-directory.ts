/**
 * @module
 * A pack as files: `manifest.json` and `shards/<sha256>`, without the expert shards, whose bytes the bundles hold.
 */
import { mkdir, open, readdir, rename, rm, writeFile } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { type ErrorCode, SparsedgeError } from '@sparsedge/engine/errors'
import { type Manifest, parseManifest, type ShardRef } from '@sparsedge/engine/pack/manifest'
import { fsStore } from '@sparsedge/engine/store/fs'
import { sha256 } from '@sparsedge/engine/store/sha256'
import { MAX_MANIFEST_BYTES, type ShardStore, shardKey } from '@sparsedge/engine/store/store'
import { verified } from '@sparsedge/engine/store/verified'
import { allocate, cannot, codeOf } from './files.ts'
import { manifestBytes, type PackObject } from './pack.ts'

export interface PackDirectory {
  readonly path: string
  readonly manifest: Manifest
  /** Serves the trunk's shards, the bundles and the text files, and verifies them. */
  readonly store: ShardStore
}

/**
 * @throws SparsedgeError `unknown_model` where there is no pack, `manifest_malformed`, `manifest_version`,
 * `store_unavailable` where the manifest cannot be read
 */
export async function openPackDirectory(path: string): Promise<PackDirectory> {
  const file = join(path, 'manifest.json')
  const bytes = await readManifest(file).catch((cause: unknown) => {
    if (codeOf(cause) !== 'ENOENT' && codeOf(cause) !== 'ENOTDIR') return cannot(`read ${file}`)(cause)
    throw new SparsedgeError('unknown_model', `${path} is not a pack: it has no manifest.json`, {}, { cause })
  })
  try {
    const manifest = parseManifest(bytes)
    return { path, manifest, store: localStore(path, manifest) }
  } catch (cause) {
    if (!(cause instanceof SparsedgeError)) throw cause
    throw new SparsedgeError(cause.code, `${file}: ${cause.message}`, cause.place, { cause })
  }
}

async function readManifest(path: string): Promise<Uint8Array> {
  const file = await open(path)
  try {
    if ((await file.stat()).size <= MAX_MANIFEST_BYTES) return await file.readFile()
    const message = `${path} has more than ${MAX_MANIFEST_BYTES} bytes: it is no manifest`
    throw new SparsedgeError('manifest_malformed', message)
  } finally {
    await file.close()
  }
}

// ---- Reading ------------------------------------------------------------------------------------------------------

/** What is wrong with a file of a pack on this machine. */
const FAULTS: Partial<Record<ErrorCode, string>> = {
  shard_missing: 'is missing',
  shard_too_short: 'is too short',
  shard_too_long: 'is too long',
  shard_hash_mismatch: 'is damaged: its bytes are not those that it is named after',
}
const MEND = 'copy the pack here again, or pack the model again'

/** The pack's files, verified. What fails says which part of the model that is and how to mend this pack. */
function localStore(path: string, manifest: Manifest): ShardStore {
  const files = verified(fsStore(path))
  const parts = partNames(manifest)
  return {
    manifest: (model, signal) => files.manifest(model, signal),
    async read(hash, into, signal, progress) {
      try {
        return await files.read(hash, into, signal, progress)
      } catch (cause) {
        if (!(cause instanceof SparsedgeError)) throw cause
        const file = `${parts.get(hash) ?? 'a shard'} (${join(path, 'shards', hash)})`
        if (cause.code === 'store_unavailable') return cannot(`read ${file}`)(cause.cause)
        const fault = FAULTS[cause.code]
        if (fault === undefined) throw cause
        throw new SparsedgeError(cause.code, `${file} ${fault}; ${MEND}`, cause.place, { cause })
      }
    },
  }
}

/** Hash → what a reader calls it. */
function partNames({ trunk, text, experts }: Manifest): Map<string, string> {
  const names = new Map([[text.tokenizer.hash, 'tokenizer.json']])
  if (text.chatTemplate) names.set(text.chatTemplate.hash, 'the chat template')
  for (const [i, { hash }] of trunk.shards.entries()) {
    names.set(hash, `trunk shard ${i + 1} of ${trunk.shards.length}`)
  }
  for (const [layer, { bundle }] of experts.layers.entries())
    names.set(bundle, `the bundle of layer ${layer}`)
  return names
}

/**
 * @param store one that verifies, as that of a {@link PackDirectory} does
 * @throws SparsedgeError what the store throws, `memory_exhausted`
 */
export async function readShard(
  store: ShardStore,
  { hash, bytes }: ShardRef,
): Promise<Uint8Array<ArrayBuffer>> {
  const into = allocate(bytes, `shard ${hash}`)
  await store.read(hash, [{ hash, bytes: into }])
  return into
}

export interface Bundle {
  readonly bytes: Uint8Array<ArrayBuffer>
  /** The layer's experts: parts of `bytes`. */
  readonly experts: readonly Uint8Array<ArrayBuffer>[]
}

/** A layer's experts, each hashed too. @throws SparsedgeError as {@link readShard} does, `shard_hash_mismatch` */
export async function readBundle(store: ShardStore, manifest: Manifest, layer: number): Promise<Bundle> {
  const { bytes: size, layers } = manifest.experts
  const { bundle, shards } = layers[layer]
  const bytes = await readShard(store, { hash: bundle, bytes: size * shards.length })
  const experts = shards.map((_, expert) => bytes.subarray(expert * size, (expert + 1) * size))
  for (const [expert, hash] of shards.entries()) {
    if ((await sha256(experts[expert])) === hash) continue
    const message = `expert ${expert} of layer ${layer} is not in its bundle (shards/${bundle}); pack the model again`
    throw new SparsedgeError('shard_hash_mismatch', message, { layer, expert, shard: hash })
  }
  return { bytes, experts }
}

// ---- Writing ------------------------------------------------------------------------------------------------------

/**
 * Writes a pack's objects as they come; the directory appears when all of it is there, never half a pack.
 *
 * @param replace whether a pack that stands there already makes way
 * @throws SparsedgeError `invalid_request` if something else stands there, or a pack and not `replace`;
 * `store_unavailable` where nothing can be written
 */
export async function packDirectoryWriter(path: string, replace: boolean) {
  const existing = await entriesOf(path)
  if (!existing.every((entry) => entry === 'manifest.json' || entry === 'shards')) {
    throw new SparsedgeError('invalid_request', `${path} holds other files than a pack; choose another --out`)
  }
  if (existing.length > 0 && !replace) {
    throw new SparsedgeError('invalid_request', `${path} holds a pack already; --force replaces it`)
  }
  const partial = `${resolve(path)}.partial`
  const writing = cannot(`write ${partial}`)
  await rm(partial, { recursive: true, force: true }).catch(writing)
  await mkdir(join(partial, 'shards'), { recursive: true }).catch(writing)
  return {
    async write({ kind, hash, bytes }: PackObject): Promise<void> {
      if (kind !== 'expert') await writeFile(join(partial, shardKey(hash)), bytes).catch(writing)
    },
    async finish(manifest: Manifest): Promise<void> {
      await writeFile(join(partial, 'manifest.json'), manifestBytes(manifest)).catch(writing)
      await rm(path, { recursive: true, force: true }).catch(cannot(`replace ${path}`))
      await rename(partial, path).catch(cannot(`rename ${partial} to ${path}`))
    },
    abandon: () => rm(partial, { recursive: true, force: true }).catch(cannot(`remove ${partial}`)),
  }
}

/**
 * What a directory that is to be written to holds; nothing if it does not exist.
 *
 * @throws SparsedgeError `invalid_request` if a file stands there, or the directory cannot be read
 */
export async function entriesOf(path: string): Promise<string[]> {
  return await readdir(path).catch((cause: unknown) => {
    return codeOf(cause) === 'ENOENT' ? [] : cannot(`write to ${path}`, 'invalid_request')(cause)
  })
}
