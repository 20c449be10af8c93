/**
 * @module
 * Where things are. Everything that is made lies in bench/cache and is made once.
 */
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

export const BENCH = fileURLToPath(new URL('.', import.meta.url))
export const ROOT = join(BENCH, '..')
export const DOCS = join(ROOT, 'docs')
export const DIST = join(ROOT, 'engine', 'dist')
export const KERNELS = { plain: join(DIST, 'plain.wasm'), relaxed: join(DIST, 'relaxed.wasm') }

export const CACHE = join(BENCH, 'cache')
export const READER = join(CACHE, 'read.wasm')
/** The packs as a directory of objects, and wrangler's state with the same in a bucket. */
export const PACKS = join(CACHE, 'packs')
export const STATE = join(CACHE, 'state')
export const WORKER_CONFIG = join(BENCH, 'wrangler.toml')

export const SHIPPED = 'smollm2-135m-dsmoe'
export const TEACHER = 'smollm2-135m-teacher'
/** The model that ships, with experts of 8 bits: too large for an isolate. */
export const EIGHT_BITS = 'smollm2-135m-dsmoe-q8'
/** GGUF files of the teacher for the peers, in CACHE. */
export const GGUF = { Q4_0: 'teacher-q4_0.gguf', Q8_0: 'teacher-q8_0.gguf' } as const
