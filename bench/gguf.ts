/**
 * @module
 * The teacher's GGUF file with its matrices in another of llama.cpp's types: what the peers read. Metadata is copied as it
 * is; only the table of tensors and the tensors are written anew.
 */
import { readFile, writeFile } from 'node:fs/promises'
import { gguf } from '@huggingface/gguf'
import { GGML_TYPES } from '@sparsedge/weights-tool/checkpoint/gguf-blocks'
import { floatToHalf } from '@sparsedge/weights-tool/checkpoint/numbers'

export type PeerType = 'Q4_0' | 'Q8_0'

const BLOCK = 32
const ALIGNMENT = 32
const F32 = 0
const TYPES = {
  Q4_0: { id: 2, blockBytes: 18, encode: q4_0 },
  Q8_0: { id: 8, blockBytes: 34, encode: q8_0 },
} as const

/**
 * Writes `to`: every matrix of `from`, the embedding too, in one type. llama.cpp's own tool keeps the embedding at 6 or 8
 * bits; all of it at 4 is faster, and speed is what the peers are here for.
 */
export async function requantise(from: string, to: string, type: PeerType): Promise<void> {
  const file = await readFile(from)
  const { tensorInfos, tensorDataOffset } = await gguf(from, { allowLocalFile: true })
  const { id, blockBytes, encode } = TYPES[type]
  const infos: Buffer[] = []
  const data: Buffer[] = []
  let offset = 0
  for (const { name, shape, dtype, offset: start } of tensorInfos) {
    const source = GGML_TYPES.get(dtype)
    if (!source) throw new Error(`tensor ${name} of ${from} is of the unknown GGML type ${dtype}`)
    const weights = Number(shape.reduce((product, n) => product * n, 1n))
    const at = Number(tensorDataOffset + start)
    const bytes = file.subarray(at, at + (weights / source.blockSize) * source.blockBytes)
    const matrix = shape.length === 2
    const out = matrix ? quantise(source.toFloats(bytes), blockBytes, encode) : bytes
    infos.push(tensorInfo(name, shape, matrix ? id : F32, offset))
    data.push(out, Buffer.alloc(-out.length & (ALIGNMENT - 1)))
    offset += out.length + (-out.length & (ALIGNMENT - 1))
  }
  // The table starts where the first tensor's name stands behind its length; all before it is metadata.
  const [first] = tensorInfos
  const table = file.indexOf(tensorInfo(first.name, [], 0, 0).subarray(0, 8 + first.name.length))
  const header = Buffer.concat([file.subarray(0, table), ...infos])
  await writeFile(to, [header, Buffer.alloc(-header.length & (ALIGNMENT - 1)), ...data])
}

function tensorInfo(name: string, shape: readonly bigint[], type: number, offset: number): Buffer {
  const info = Buffer.alloc(8 + name.length + 4 + 8 * shape.length + 4 + 8)
  let at = info.writeBigUInt64LE(BigInt(name.length))
  at += info.write(name, at)
  at = info.writeUInt32LE(shape.length, at)
  for (const n of shape) at = info.writeBigUInt64LE(n, at)
  at = info.writeUInt32LE(type, at)
  info.writeBigUInt64LE(BigInt(offset), at)
  return info
}

type Encode = (block: Float32Array, out: Buffer, at: number) => void

function quantise(weights: Float32Array, blockBytes: number, encode: Encode): Buffer {
  const blocks = weights.length / BLOCK
  const out = Buffer.alloc(blocks * blockBytes)
  for (let i = 0; i < blocks; i++) encode(weights.subarray(i * BLOCK, (i + 1) * BLOCK), out, i * blockBytes)
  return out
}

/** ggml's quantize_row_q4_0_ref: the value of largest magnitude becomes code 0, that is -8 d. */
function q4_0(block: Float32Array, out: Buffer, at: number): void {
  let peak = 0
  for (const w of block) if (Math.abs(w) > Math.abs(peak)) peak = w
  const d = peak / -8
  const code = (w: number) => Math.min(15, Math.trunc(w * (d === 0 ? 0 : 1 / d) + 8.5))
  out.writeUInt16LE(floatToHalf(d), at)
  for (let i = 0; i < BLOCK / 2; i++) out[at + 2 + i] = code(block[i]) | (code(block[BLOCK / 2 + i]) << 4)
}

/** ggml's quantize_row_q8_0_ref. */
function q8_0(block: Float32Array, out: Buffer, at: number): void {
  let peak = 0
  for (const w of block) peak = Math.max(peak, Math.abs(w))
  const d = peak / 127
  out.writeUInt16LE(floatToHalf(d), at)
  for (let i = 0; i < BLOCK; i++) out.writeInt8(d === 0 ? 0 : Math.round(block[i] / d), at + 2 + i)
}
