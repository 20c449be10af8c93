/**
 * @module
 * GGML's tensor types → float32. Formulas as in ggml's `dequantize_row_*` and the Python package `gguf`.
 */
import { floatsFromBF16, floatsFromF16, floatsFromF32, halfToFloat, viewOf } from './numbers.ts'

export interface GgmlType {
  readonly name: string
  /** Weights of one block and its bytes. */
  readonly blockSize: number
  readonly blockBytes: number
  /** Whole blocks to floats. */
  readonly toFloats: (bytes: Uint8Array) => Float32Array
}

/** By GGML's type number; types that are not here cannot be read. */
export const GGML_TYPES: ReadonlyMap<number, GgmlType> = new Map([
  [0, { name: 'F32', blockSize: 1, blockBytes: 4, toFloats: floatsFromF32 }],
  [1, { name: 'F16', blockSize: 1, blockBytes: 2, toFloats: floatsFromF16 }],
  [2, blocks('Q4_0', 32, 18, q4_0)],
  [3, blocks('Q4_1', 32, 20, q4_1)],
  [8, blocks('Q8_0', 32, 34, q8_0)],
  // What llama.cpp makes of the embedding or head where the rest is Q4_0.
  [14, blocks('Q6_K', 256, 210, q6_K)],
  [30, { name: 'BF16', blockSize: 1, blockBytes: 2, toFloats: floatsFromBF16 }],
])

type BlockDecoder = (view: DataView, at: number, out: Float32Array, to: number) => void

function blocks(name: string, blockSize: number, blockBytes: number, decode: BlockDecoder): GgmlType {
  const toFloats = (bytes: Uint8Array) => {
    const view = viewOf(bytes)
    const count = bytes.length / blockBytes
    const out = new Float32Array(count * blockSize)
    for (let block = 0; block < count; block++) decode(view, block * blockBytes, out, block * blockSize)
    return out
  }
  return { name, blockSize, blockBytes, toFloats }
}

/** [f16 d][16 bytes of two codes]: w = d (q - 8); low nibbles are the first 16 weights. */
function q4_0(view: DataView, at: number, out: Float32Array, to: number): void {
  const d = halfToFloat(view.getUint16(at, true))
  for (let i = 0; i < 16; i++) {
    const byte = view.getUint8(at + 2 + i)
    out[to + i] = d * ((byte & 15) - 8)
    out[to + 16 + i] = d * ((byte >> 4) - 8)
  }
}

/** [f16 d][f16 m][16 bytes of two codes]: w = d q + m. */
function q4_1(view: DataView, at: number, out: Float32Array, to: number): void {
  const d = halfToFloat(view.getUint16(at, true))
  const m = halfToFloat(view.getUint16(at + 2, true))
  for (let i = 0; i < 16; i++) {
    const byte = view.getUint8(at + 4 + i)
    out[to + i] = d * (byte & 15) + m
    out[to + 16 + i] = d * (byte >> 4) + m
  }
}

/** [f16 d][32 i8]: w = d q. */
function q8_0(view: DataView, at: number, out: Float32Array, to: number): void {
  const d = halfToFloat(view.getUint16(at, true))
  for (let i = 0; i < 32; i++) out[to + i] = d * view.getInt8(at + 2 + i)
}

/** [128 low nibbles of two][64 bytes of four upper pairs of bits][16 i8 scales][f16 d]: w = d · scale · (q - 32). */
function q6_K(view: DataView, at: number, out: Float32Array, to: number): void {
  const d = halfToFloat(view.getUint16(at + 208, true))
  for (let half = 0; half < 2; half++) {
    for (let i = 0; i < 128; i++) {
      // Four runs of 32: nibbles low, low, high, high of 64 bytes; upper bits 0-1, 2-3, 4-5, 6-7 of 32 bytes.
      const run = i >> 5
      const low = view.getUint8(at + 64 * half + (i & 63)) >> (run < 2 ? 0 : 4)
      const high = view.getUint8(at + 128 + 32 * half + (i & 31)) >> (2 * run)
      const scale = view.getInt8(at + 192 + 8 * half + (i >> 4))
      out[to + 128 * half + i] = d * scale * (((low & 15) | ((high & 3) << 4)) - 32)
    }
  }
}
