/**
 * @module
 * Quantised matrix times activations: the loop in which a model spends its time.
 *
 * One block of 32 inputs of one row is worth (src/pack/layout.ts, record.ts)
 *
 *     scale · s · (8 Σ q·code - z · Σ code)
 *
 * and everything inside the last product is an exact integer. Blocks are added to the output in order, one float
 * multiplication and one addition each; the row's scale R is left to the caller. So the same bits come out of every
 * kernel here, however it forms the integers and however many tokens it takes at once.
 *
 * Four rows lie in the four lanes of a vector, hence no sum across lanes. Loop bodies are kept small: engines that
 * schedule a whole body at once run out of registers (Node 20 and 22 lose half their speed on unrolled ones).
 */
import { dot, factors, mask0, mask1, mask2, part1, products, quads, settle } from './dot.ts'
import { RECORD, SCALE, SUM } from './record.ts'

export const TILE: usize = 288
export const CODES: usize = 32
/** Streams that one token's weights are read in (see plane1), and the tiles below which one is not worth starting. */
const STREAMS: i32 = 4
const LONG_STREAM: i32 = 64
/** Bytes of a record's codes that one step of 8 columns takes. */
export const STEP: usize = ASC_FEATURE_RELAXED_SIMD ? 8 : 16

/** out[rowTiles · 16] += the matrix times one token's records, planes in order. */
export function multiply(
  tiles: usize,
  planes: i32,
  rowTiles: i32,
  blocks: i32,
  records: usize,
  out: usize,
): void {
  plane1(tiles, rowTiles, blocks, records, out, 1)
  if (planes > 1) plane1(secondPlane(tiles, rowTiles, blocks), rowTiles, blocks, records, out, FINE)
}

/** What the second plane of `q8` counts. */
export const FINE: f32 = 0.0625

/** Bytes of one plane of a matrix [rows, cols]. */
@inline
export function planeBytes(rows: i32, cols: i32): usize {
  return <usize>(((rows + 15) >>> 4) * (cols >>> 5)) * TILE
}

@inline
export function secondPlane(tiles: usize, rowTiles: i32, blocks: i32): usize {
  return tiles + <usize>(rowTiles * blocks) * TILE
}

/**
 * One plane, one token. The row tiles are read as several streams side by side, a block of each in turn: a machine fetches
 * only so many bytes ahead in one stream, and from a memory that answers late one stream is slower than the arithmetic.
 */
export function plane1(
  tiles: usize,
  rowTiles: i32,
  blocks: i32,
  records: usize,
  out: usize,
  factor: f32,
): void {
  const each = rowTiles / STREAMS
  const done = each * blocks < LONG_STREAM ? 0 : each * STREAMS
  if (done > 0) streams1(tiles, STREAMS, each, blocks, records, out, factor)
  if (done === rowTiles) return
  tiles += <usize>(done * blocks) * TILE
  out += (<usize>done) << 6
  streams1(tiles, 1, rowTiles - done, blocks, records, out, factor)
}

/** `streams` runs of `each` row tiles, end to end. */
function streams1(
  tiles: usize,
  streams: i32,
  each: i32,
  blocks: i32,
  records: usize,
  out: usize,
  factor: f32,
): void {
  if (ASC_FEATURE_RELAXED_SIMD && quads) streams1As<i32>(tiles, streams, each, blocks, records, out, factor)
  else streams1As<i16>(tiles, streams, each, blocks, records, out, factor)
}

/** T is the lane in which the relaxed module sums: i16 (pairs) or i32 (quads). */
@inline
function streams1As<T>(
  tiles: usize,
  streams: i32,
  each: i32,
  blocks: i32,
  records: usize,
  outs: usize,
  factor: f32,
): void {
  const m0 = mask0()
  const m1 = mask1()
  const m2 = mask2()
  const tileStride = <usize>(each * blocks) * TILE
  const outStride = (<usize>each) << 6
  do {
    let record = records
    let block = blocks
    do {
      let tile = tiles
      let out = outs
      let stream = streams
      do {
        let i0 = i32x4.splat(0)
        let i1 = i0
        let i2 = i0
        let i3 = i0
        let weights = tile + CODES
        let codes = record
        let step = 4
        do {
          let x = v128.load32_splat(codes)
          const w0 = v128.load(weights)
          i0 = dot<T>(i0, v128.and(w0, m0), x)
          const w1 = v128.load(weights, 16)
          i1 = dot<T>(i1, v128.and(w1, m0), x)
          const w2 = v128.load(weights, 32)
          i2 = dot<T>(i2, v128.and(w2, m0), x)
          const w3 = v128.load(weights, 48)
          i3 = dot<T>(i3, v128.and(w3, m0), x)
          x = v128.load32_splat(codes, 4)
          i0 = dot<T>(i0, part1(w0, m0, m1), x)
          i1 = dot<T>(i1, part1(w1, m0, m1), x)
          i2 = dot<T>(i2, part1(w2, m0, m1), x)
          i3 = dot<T>(i3, part1(w3, m0, m1), x)
          if (!ASC_FEATURE_RELAXED_SIMD) {
            x = v128.load32_splat(codes, 8)
            i0 = dot<T>(i0, v128.and(w0, m2), x)
            i1 = dot<T>(i1, v128.and(w1, m2), x)
            i2 = dot<T>(i2, v128.and(w2, m2), x)
            i3 = dot<T>(i3, v128.and(w3, m2), x)
            x = v128.load32_splat(codes, 12)
            i0 = dot<T>(i0, i16x8.shr_u(w0, 12), x)
            i1 = dot<T>(i1, i16x8.shr_u(w1, 12), x)
            i2 = dot<T>(i2, i16x8.shr_u(w2, 12), x)
            i3 = dot<T>(i3, i16x8.shr_u(w3, 12), x)
          }
          weights += 64
          codes += STEP
        } while (--step)
        const scale = f32x4.splat(load<f32>(record, SCALE) * factor)
        const codeSum = v128.load32_splat(record, SUM)
        let s = v128.load8x8_u(tile)
        let sz = i16x8.mul(s, v128.load8x8_u(tile, 16))
        const y0 = v128.load(out)
        v128.store(out, settle<T>(y0, i0, factors<T>(s, false), products(sz, false), codeSum, scale))
        const y1 = v128.load(out, 16)
        v128.store(out, settle<T>(y1, i1, factors<T>(s, true), products(sz, true), codeSum, scale), 16)
        s = v128.load8x8_u(tile, 8)
        sz = i16x8.mul(s, v128.load8x8_u(tile, 24))
        const y2 = v128.load(out, 32)
        v128.store(out, settle<T>(y2, i2, factors<T>(s, false), products(sz, false), codeSum, scale), 32)
        const y3 = v128.load(out, 48)
        v128.store(out, settle<T>(y3, i3, factors<T>(s, true), products(sz, true), codeSum, scale), 48)
        tile += tileStride
        out += outStride
      } while (--stream)
      tiles += TILE
      record += RECORD
    } while (--block)
    outs += 64
  } while (--each)
}
