/**
 * @module
 * The safetensors format: 8 bytes with the header's length, a JSON header, the tensors end to end. A header is hostile
 * until every number in it was checked against the file.
 */
import { open } from 'node:fs/promises'
import type { FloatTensor } from '@sparsedge/engine/model/weights'
import { z } from 'zod'
import { cannot } from '../files.ts'
import { malformed, parseJson, unsupported } from './checkpoint.ts'
import { type LargeFile, openLargeFile } from './file.ts'
import { floatsFromBF16, floatsFromF16, floatsFromF32, floatToHalf, viewOf } from './numbers.ts'

/** As in the reference implementation: a header that is longer is an attack. */
const MAX_HEADER = 100_000_000

const ELEMENT_BYTES: ReadonlyMap<string, number> = new Map([
  ['F64', 8],
  ['F32', 4],
  ['F16', 2],
  ['BF16', 2],
  ['I64', 8],
  ['U64', 8],
  ['I32', 4],
  ['U32', 4],
  ['I16', 2],
  ['U16', 2],
  ['I8', 1],
  ['U8', 1],
  ['BOOL', 1],
  ['F8_E4M3', 1],
  ['F8_E5M2', 1],
])

const Info = z.strictObject({
  dtype: z.string(),
  shape: z.array(z.int().nonnegative()),
  data_offsets: z.tuple([z.int().nonnegative(), z.int().nonnegative()]),
})
const Header = z.record(z.string(), z.unknown())

interface TensorInfo {
  readonly dtype: string
  readonly shape: readonly number[]
  /** Offset in the file. */
  readonly start: number
  readonly bytes: number
}

export interface TensorFile {
  readonly names: readonly string[]
  /** @throws SparsedgeError `checkpoint_malformed` if there is no such tensor */
  info(name: string): { readonly dtype: string; readonly shape: readonly number[] }
  /** The tensor's bytes as they are. @throws SparsedgeError as {@link TensorFile.info} does */
  bytes(name: string): Promise<Uint8Array<ArrayBuffer>>
  /** A tensor of F32, F16 or BF16. @throws SparsedgeError also `checkpoint_unsupported` for another dtype */
  floats(name: string): Promise<FloatTensor>
  close(): Promise<void>
}

/** @throws SparsedgeError `checkpoint_malformed`, `checkpoint_unsupported` for an unknown dtype */
export async function openSafetensors(path: string): Promise<TensorFile> {
  const file = await openLargeFile(path)
  try {
    const tensors = await readHeader(file)
    return tensorFile(file, tensors)
  } catch (error) {
    await file.close()
    throw error
  }
}

function tensorFile(file: LargeFile, tensors: ReadonlyMap<string, TensorInfo>): TensorFile {
  const info = (name: string): TensorInfo => {
    const found = tensors.get(name)
    if (!found) throw malformed(`${file.path} has no tensor ${name}`)
    return found
  }
  const bytes = (name: string) => file.read(info(name).start, info(name).bytes)
  return {
    names: [...tensors.keys()],
    info,
    bytes,
    async floats(name) {
      const { dtype, shape } = info(name)
      return { shape, data: toFloats(dtype, await bytes(name), name) }
    },
    close: () => file.close(),
  }
}

function toFloats(dtype: string, bytes: Uint8Array, name: string): Float32Array {
  switch (dtype) {
    case 'F32':
      return floatsFromF32(bytes)
    case 'F16':
      return floatsFromF16(bytes)
    case 'BF16':
      return floatsFromBF16(bytes)
  }
  throw unsupported(`tensor ${name} is ${dtype}; only F32, F16 and BF16 weights can be read`)
}

async function readHeader(file: LargeFile): Promise<Map<string, TensorInfo>> {
  const length = Number(viewOf(await file.read(0, 8)).getBigUint64(0, true))
  if (length > MAX_HEADER) throw malformed(`${file.path} is not a safetensors file: its header is too long`)
  const header = parseJson(Header, await file.read(8, length), `the header of ${file.path}`)
  const tensors = new Map<string, TensorInfo>()
  for (const [name, value] of Object.entries(header)) {
    if (name === '__metadata__') continue
    tensors.set(name, parseInfo(value, name, file.path, 8 + length))
  }
  checkCoverage(file, tensors, 8 + length)
  return tensors
}

function parseInfo(value: unknown, name: string, path: string, dataStart: number): TensorInfo {
  const parsed = Info.safeParse(value)
  if (!parsed.success) {
    throw malformed(`tensor ${name} of ${path} is described badly:\n${z.prettifyError(parsed.error)}`)
  }
  const { dtype, shape, data_offsets } = parsed.data
  const [begin, end] = data_offsets
  const width = ELEMENT_BYTES.get(dtype)
  if (width === undefined) throw unsupported(`tensor ${name} of ${path} is of an unknown type, ${dtype}`)
  const bytes = shape.reduce((product, n) => product * n, width)
  if (bytes !== end - begin) {
    throw malformed(`tensor ${name} of ${path}: [${shape}] of ${dtype} is not ${end - begin} bytes`)
  }
  return { dtype, shape, start: dataStart + begin, bytes }
}

/** The tensors must cover the data exactly: no overlap, no hole, nothing past the end of the file. */
function checkCoverage(file: LargeFile, tensors: ReadonlyMap<string, TensorInfo>, dataStart: number): void {
  let end = dataStart
  for (const [name, { start, bytes }] of [...tensors].sort(([, a], [, b]) => a.start - b.start)) {
    if (start !== end) {
      const fault = start < end ? 'overlaps the tensor before it' : 'leaves a hole before it'
      throw malformed(`tensor ${name} of ${file.path} ${fault}`)
    }
    end = start + bytes
  }
  if (end > file.size) throw malformed(`${file.path} is cut off: ${end} bytes expected, ${file.size} found`)
  if (end < file.size) throw malformed(`${file.path} has ${file.size - end} bytes that belong to no tensor`)
}

// ---- Writing --------------------------------------------------------------------------------------------------------

export interface OutgoingTensor {
  readonly name: string
  readonly dtype: 'F32' | 'F16'
  readonly shape: readonly number[]
}

/**
 * Writes a safetensors file, tensor after tensor, so that only one is held at a time.
 *
 * @param read gives the weights of a tensor, as many as its shape says
 * @throws SparsedgeError `checkpoint_unsupported` for a weight that is too large for F16, `store_unavailable` where the file
 * cannot be written, what `read` throws
 */
export async function writeSafetensors(
  path: string,
  tensors: readonly OutgoingTensor[],
  read: (name: string) => Promise<Float32Array>,
): Promise<void> {
  let end = 0
  const entries = tensors.map(({ name, dtype, shape }) => {
    const start = end
    end += shape.reduce((product, n) => product * n, dtype === 'F32' ? 4 : 2)
    return [name, { dtype, shape, data_offsets: [start, end] }]
  })
  const header = new TextEncoder().encode(JSON.stringify(Object.fromEntries(entries)))
  // Spaces after the JSON keep the data aligned.
  const padded = new Uint8Array(8 + Math.ceil(header.length / 8) * 8).fill(0x20)
  viewOf(padded).setBigUint64(0, BigInt(padded.length - 8), true)
  padded.set(header, 8)
  const writing = cannot(`write ${path}`)
  const file = await open(path, 'w').catch(writing)
  try {
    await file.writeFile(padded).catch(writing)
    for (const { name, dtype } of tensors) {
      await file.writeFile(toBytes(name, dtype, await read(name))).catch(writing)
    }
  } finally {
    await file.close()
  }
}

function toBytes(name: string, dtype: 'F32' | 'F16', data: Float32Array): Uint8Array {
  const bytes = new Uint8Array(data.length * (dtype === 'F32' ? 4 : 2))
  const view = viewOf(bytes)
  for (let i = 0; i < data.length; i++) {
    if (dtype === 'F32') view.setFloat32(4 * i, data[i], true)
    else view.setUint16(2 * i, halfOrThrow(data[i], name), true)
  }
  return bytes
}

function halfOrThrow(value: number, name: string): number {
  const half = floatToHalf(value)
  if ((half & 0x7fff) < 0x7c00) return half
  throw unsupported(`tensor ${name} holds ${value}, which is too large for F16; use F32`)
}
