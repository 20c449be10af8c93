/**
 * @module
 * Activations as the integer kernels read them: one record per block of 32 values,
 *
 *     [codes][f32 scale][i32 sum of codes][8 bytes unused]
 *
 * where value = code · scale, |code| <= 127. The relaxed module stores the codes as 32 i8. The plain module multiplies
 * 16-bit lanes and masks nibbles where they stand, so it stores each code as an i16, in the order and with the power of
 * two (1, 16 or 256, see multiply.ts) that bring every product to 256 times its worth.
 */
import { largerMagnitudes, maxLanes, rounders, scaleTo, sumLanes, toIntegers } from './vector.ts'

const CODES: usize = ASC_FEATURE_RELAXED_SIMD ? 32 : 64
export const RECORD: usize = CODES + 16
export const SCALE: usize = CODES
export const SUM: usize = CODES + 4

/** Bytes of the records of a vector of `length` values. */
@inline
export function recordBytes(length: i32): usize {
  return <usize>(length >>> 5) * RECORD
}

/**
 * Quantises `length` floats (a multiple of 32), each block by its largest magnitude, to nearest even. A block with a NaN
 * gets the scale NaN, so that whatever is computed from it is NaN too; its codes mean nothing then.
 *
 * @param weight multiplies every scale: how a gate's weight reaches an expert's output at no cost
 */
export function quantise(from: usize, length: i32, record: usize, weight: f32): void {
  const end = from + ((<usize>length) << 2)
  const ones = i16x8.splat(1)
  const rounder = rounders()
  while (from < end) {
    let peak = f32x4.abs(v128.load(from))
    for (let i: usize = 16; i < 128; i += 16) peak = largerMagnitudes(peak, f32x4.abs(v128.load(from + i)))
    const top = maxLanes(peak)
    const inverse = f32x4.splat(scaleTo(127, top))
    let sum = i32x4.splat(0)
    for (let i: usize = 0; i < 32; i += 8) {
      const low = toIntegers(v128.load(from + (i << 2)), inverse, rounder)
      const high = toIntegers(v128.load(from + (i << 2), 16), inverse, rounder)
      const codes = i16x8.narrow_i32x4_s(low, high)
      sum = i32x4.add(sum, i32x4.dot_i16x8_s(codes, ones))
      storeCodes(record, i, codes)
    }
    store<f32>(record, (top / 127) * weight, SCALE)
    store<i32>(
      record,
      i32x4.extract_lane(sum, 0) +
        i32x4.extract_lane(sum, 1) +
        i32x4.extract_lane(sum, 2) +
        i32x4.extract_lane(sum, 3),
      SUM,
    )
    from += 128
    record += RECORD
  }
}

/** Stores codes i … i + 7 of a block. */
@inline
function storeCodes(record: usize, i: usize, codes: v128): void {
  if (ASC_FEATURE_RELAXED_SIMD) {
    v128.store64_lane(record + i, i8x16.narrow_i16x8_s(codes, codes), 0)
  } else {
    // Pairs as the masks of multiply.ts meet them: (0, 2), (4, 6), (1, 3), (5, 7).
    const pairs = v128.shuffle<i16>(codes, codes, 0, 2, 4, 6, 1, 3, 5, 7)
    v128.store(record + (i << 1), i16x8.mul(pairs, i16x8(256, 256, 16, 16, 1, 1, 256, 256)))
  }
}

/**
 * RMSNorm: to[i] = x[i] · 1/sqrt(mean(x²) + eps) · weight[i], and the same as records. NaN where Σ x² is beyond the floats.
 *
 * @param to f32 [length]
 */
export function normalise(x: usize, weight: usize, eps: f32, length: i32, to: usize, records: usize): void {
  const bytes = (<usize>length) << 2
  let a = f32x4.splat(0)
  let b = a
  for (let i: usize = 0; i < bytes; i += 32) {
    const u = v128.load(x + i)
    const v = v128.load(x + i, 16)
    a = f32x4.add(a, f32x4.mul(u, u))
    b = f32x4.add(b, f32x4.mul(v, v))
  }
  const sum = sumLanes(f32x4.add(a, b))
  // Left at infinity, the sum would make a vector of zeros, and that in the end a token like any other.
  const scale = f32x4.splat(sum <= f32.MAX_VALUE ? 1 / sqrt<f32>(sum / <f32>length + eps) : f32.NaN)
  for (let i: usize = 0; i < bytes; i += 16) {
    v128.store(to + i, f32x4.mul(f32x4.mul(v128.load(x + i), scale), v128.load(weight + i)))
  }
  quantise(to, length, records, 1)
}
