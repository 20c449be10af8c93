/**
 * @module
 * The model that ships, opened as the parity checks need it, and the goldens that PyTorch and the reference wrote for it.
 */
import { readFile } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { supportsRelaxedSimd, type WasmModules } from '@sparsedge/engine/backends/wasm/index'
import type { Manifest } from '@sparsedge/engine/pack/manifest'
import { memoryStore } from '@sparsedge/engine/store/memory'
import type { ShardStore } from '@sparsedge/engine/store/store'
import { createTokenizer, type Tokenizer } from '@sparsedge/engine/text/tokenizer'
import { manifestBytes } from '@sparsedge/weights-tool/pack'
import { openPackDirectory, readShard } from '@sparsedge/weights-tool/pack-directory'
import { expandPack } from '@sparsedge/weights-tool/push/expand'
import { z } from 'zod'

const GOLDENS = new URL('../goldens/', import.meta.url)
const DIST = new URL('../../engine/dist/', import.meta.url)

export interface Pack {
  readonly manifest: Manifest
  readonly store: ShardStore
}

/** The pack that ships. */
export function openShipped(): Promise<Pack> {
  return openPack(fileURLToPath(new URL('../../models/smollm2-135m-dsmoe', import.meta.url)))
}

/** A pack directory, in memory, with every expert cut from its bundle. */
export async function openPack(path: string): Promise<Pack> {
  const { manifest, store } = await openPackDirectory(path)
  const memory = memoryStore()
  for (const file of expandPack(manifest, store)) {
    for (const { key, bytes } of await file.read()) memory.objects.set(key, bytes)
  }
  memory.putManifest(manifest.name, manifestBytes(manifest))
  return { manifest, store: memory }
}

export async function packTokenizer({ manifest, store }: Pack): Promise<Tokenizer> {
  return createTokenizer(await readShard(store, manifest.text.tokenizer), manifest.config.vocab)
}

/** The kernels as `npm run build` leaves them; relaxed ones only where this machine runs them. */
export async function wasmModules(): Promise<WasmModules> {
  const compile = async (name: string) => WebAssembly.compile(await readFile(new URL(name, DIST)))
  const plain = await compile('plain.wasm')
  return supportsRelaxedSimd() ? { plain, relaxed: await compile('relaxed.wasm') } : { plain }
}

/** A file of test/goldens as JSON. */
export async function golden<Schema extends z.ZodType>(
  name: string,
  schema: Schema,
): Promise<z.output<Schema>> {
  return schema.parse(JSON.parse(await readFile(new URL(name, GOLDENS), 'utf8')))
}

/** Little-endian floats of a file of test/goldens. */
export async function goldenBytes(name: string): Promise<DataView<ArrayBuffer>> {
  return new DataView(new Uint8Array(await readFile(new URL(name, GOLDENS))).buffer)
}

export const NamedTexts = z.array(z.object({ name: z.string(), text: z.string() }))
