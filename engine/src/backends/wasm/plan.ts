/**
 * @module
 * Where everything lies in the one WebAssembly.Memory of a backend, which is allocated once and never grows:
 *
 *     static data of the module | descriptor | scratch | trunk | KV pages | arena
 *
 * The arena takes what the rest leaves, at most a slot for every expert.
 */
import { SparsedgeError } from '../../errors.ts'
import { qkvRows } from '../../model/config.ts'
import { TILE_ROWS } from '../../pack/layout.ts'
import { type Manifest, trunkBytes } from '../../pack/manifest.ts'
import { arenaFloor } from '../../residency/arena.ts'

/** Tokens that one pass takes: `CHUNK` of engine/assembly/model.ts. */
export const CHUNK = 128
/** Tokens of a KV page: `PAGE_TOKENS` of engine/assembly/cache.ts. */
export const PAGE_TOKENS = 32

/** Query rows that attention takes at a time. */
const ROWS = 3

/** The module's static data end below (engine/assembly/build.ts). */
const STATIC_BYTES = 2048
/** Bytes of the descriptor: a fixed part and a part for each layer, with room to spare. */
const DESCRIPTOR_BYTES = { model: 1024, layer: 128 }
/** Bytes of the larger of the two builds' activation records, one a block of 32. */
const RECORD_BYTES = 80
const BLOCK = 32
/** A term of a sum: `Term` of engine/assembly/multiply.ts. */
const TERM_BYTES = 16
const ALIGNMENT = 64
/** Bytes of which a WASM memory has a whole number. */
export const WASM_PAGE = 65536

/** A run of bytes in the memory. */
export interface Region {
  readonly offset: number
  readonly bytes: number
}

export interface Plan {
  /** Size of the memory. */
  readonly bytes: number
  readonly descriptor: Region
  /** Addresses of the scratch buffers that engine/assembly/model.ts names. */
  readonly scratch: Readonly<Record<ScratchName, number>>
  readonly trunk: Region
  /** The KV cache, laid out as engine/assembly/cache.ts says. */
  readonly cache: Region & { readonly pages: number }
  readonly arena: Region & { readonly slotBytes: number }
}

export type ScratchName = keyof ReturnType<typeof scratchBytes>

/**
 * @param memoryBytes the most that the memory may take; it is rounded up to whole pages
 * @param contextTokens tokens that the KV pages hold, all sequences together
 * @throws SparsedgeError `arena_too_small` with the memoryBytes that would do
 */
export function planMemory(manifest: Manifest, memoryBytes: number, contextTokens: number): Plan {
  const { config, experts } = manifest
  let end = STATIC_BYTES
  const take = (bytes: number): Region => {
    const offset = align(end, ALIGNMENT)
    end = offset + bytes
    return { offset, bytes }
  }
  const descriptor = take(DESCRIPTOR_BYTES.model + config.layers * DESCRIPTOR_BYTES.layer)
  const pages = Math.ceil(contextTokens / PAGE_TOKENS)
  const scratch = mapValues(scratchBytes(manifest, pages), (bytes) => take(bytes).offset)
  const trunk = take(trunkBytes(manifest))
  // int8 keys and values with a float scale each, for every layer and key head.
  const pageBytes = config.layers * config.kvHeads * 2 * PAGE_TOKENS * (config.headDim + 4)
  const cache = { ...take(pages * pageBytes), pages }

  const slotBytes = align(experts.bytes, ALIGNMENT)
  const start = align(end, ALIGNMENT)
  const slots = Math.min(Math.floor((memoryBytes - start) / slotBytes), config.layers * config.experts)
  const floor = arenaFloor(manifest)
  if (slots < floor) {
    const enough = align(start + floor * slotBytes, WASM_PAGE)
    throw new SparsedgeError(
      'arena_too_small',
      `${memoryBytes} bytes leave room for ${Math.max(slots, 0)} experts and the model needs ${floor}; ` +
        `give the backend ${enough} bytes, or less than ${contextTokens} tokens of context`,
      { model: manifest.name },
    )
  }
  const arena = { ...take(slots * slotBytes), slotBytes }
  return { bytes: align(end, WASM_PAGE), descriptor, scratch, trunk, cache, arena }
}

/** @throws SparsedgeError `memory_exhausted` if this machine does not give it */
export function allocate({ bytes }: Plan): WebAssembly.Memory {
  const pages = bytes / WASM_PAGE
  try {
    return new WebAssembly.Memory({ initial: pages, maximum: pages })
  } catch (cause) {
    const message = `this machine does not give ${bytes} bytes of WASM memory`
    throw new SparsedgeError('memory_exhausted', message, {}, { cause })
  }
}

/** Bytes of each scratch buffer; shapes as in engine/assembly/model.ts. */
function scratchBytes({ config }: Manifest, pages: number) {
  const { hidden, heads, headDim, experts, vocab } = config
  const width = heads * headDim
  const units = Math.max(config.expertUnits, config.sharedUnits)
  const activations = Math.max(activationsOf(config.expertUnits), activationsOf(config.sharedUnits))
  const tiles = Math.ceil(vocab / TILE_ROWS)
  const records = (length: number) => (length / BLOCK) * RECORD_BYTES
  return {
    tokens: CHUNK * 4,
    pages: pages * 4,
    slots: experts * 4,
    gateTop: 4,
    gateLevels: config.layers * 4,
    available: experts * 4,
    routed: 2 * experts * 2,
    uses: 2 * experts * 2,
    logits: tiles * TILE_ROWS * 4,
    peaks: tiles * 4,
    masses: tiles * 8,
    choices: 8,
    x: CHUNK * hidden * 4,
    h: CHUNK * hidden * 4,
    records: CHUNK * records(hidden),
    sum: CHUNK * hidden * 4,
    angles: CHUNK * headDim * 4,
    qkvRows: CHUNK * qkvRows(config) * 4,
    context: CHUNK * width * 4,
    contextRecords: CHUNK * records(width),
    query: ROWS * headDim * 2,
    scores: ROWS * pages * PAGE_TOKENS * 4,
    shares: ROWS * PAGE_TOKENS * 2,
    gates: 2 * CHUNK * experts * 4,
    gateScores: 2 * CHUNK * experts * 4,
    assigned: CHUNK * 8,
    gateUp: 2 * activations * 4,
    unitRecords: records(activations),
    batch: CHUNK * 8,
    tileBest: tiles * 4,
    terms: 4 * 2 * (Math.max(hidden, width, units) / BLOCK) * TERM_BYTES,
  }
}

/** Units times tokens that an expert is applied to at once: `batchOf` of engine/assembly/model.ts. */
function activationsOf(units: number): number {
  return units === 0 ? 0 : units * Math.max(Math.min(Math.floor(12288 / units), CHUNK), 4)
}

export function align(value: number, to: number): number {
  return Math.ceil(value / to) * to
}

function mapValues<K extends string>(
  record: Record<K, number>,
  map: (value: number) => number,
): Record<K, number> {
  const mapped = { ...record }
  for (const key in record) mapped[key] = map(record[key])
  return mapped
}
