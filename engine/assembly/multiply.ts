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

const TILE: usize = 288
const CODES: usize = 32
/** Streams that one token's weights are read in (see plane1As), and the tiles below which one is not worth starting. */
const STREAMS: i32 = 4
const LONG_STREAM: i32 = 64
/** Bytes of a record's codes that one step of 8 columns takes. */
const STEP: usize = ASC_FEATURE_RELAXED_SIMD ? 8 : 16

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

/** The same for four tokens; every weight is unpacked once. */
export function multiply4(
  tiles: usize,
  planes: i32,
  rowTiles: i32,
  blocks: i32,
  record0: usize,
  record1: usize,
  record2: usize,
  record3: usize,
  out0: usize,
  out1: usize,
  out2: usize,
  out3: usize,
): void {
  let factor: f32 = 1
  do {
    if (ASC_FEATURE_RELAXED_SIMD && quads) {
      plane4As<i32>(
        tiles,
        rowTiles,
        blocks,
        record0,
        record1,
        record2,
        record3,
        out0,
        out1,
        out2,
        out3,
        factor,
      )
    } else {
      plane4As<i16>(
        tiles,
        rowTiles,
        blocks,
        record0,
        record1,
        record2,
        record3,
        out0,
        out1,
        out2,
        out3,
        factor,
      )
    }
    tiles = secondPlane(tiles, rowTiles, blocks)
    factor = FINE
  } while (--planes)
}

/** What the second plane of `q8` counts. */
export const FINE: f32 = 0.0625

/** Bytes of one plane of a matrix [rows, cols]. */
@inline
export function planeBytes(rows: i32, cols: i32): usize {
  return <usize>(((rows + 15) >>> 4) * (cols >>> 5)) * TILE
}

@inline
function secondPlane(tiles: usize, rowTiles: i32, blocks: i32): usize {
  return tiles + <usize>(rowTiles * blocks) * TILE
}

/** One plane, one token. */
export function plane1(
  tiles: usize,
  rowTiles: i32,
  blocks: i32,
  records: usize,
  out: usize,
  factor: f32,
): void {
  if (ASC_FEATURE_RELAXED_SIMD && quads) plane1As<i32>(tiles, rowTiles, blocks, records, out, factor)
  else plane1As<i16>(tiles, rowTiles, blocks, records, out, factor)
}

/**
 * T is the lane in which the relaxed module sums: i16 (pairs) or i32 (quads).
 *
 * The row tiles are read as several streams side by side, a block of each in turn: a machine fetches only so many bytes
 * ahead in one stream, and from a memory that answers late one stream is slower than the arithmetic.
 */
@inline
function plane1As<T>(tile: usize, rowTiles: i32, blocks: i32, records: usize, out: usize, factor: f32): void {
  const each = rowTiles / STREAMS
  const done = each * blocks < LONG_STREAM ? 0 : each * STREAMS
  if (done > 0) streams1<T>(tile, STREAMS, each, blocks, records, out, factor)
  if (done === rowTiles) return
  tile += <usize>(done * blocks) * TILE
  out += (<usize>done) << 6
  streams1<T>(tile, 1, rowTiles - done, blocks, records, out, factor)
}

/** `streams` runs of `each` row tiles. */
@inline
function streams1<T>(
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

/** Eight rows of four tokens at a time: 8 integer sums, two vectors of weights and one of codes fit 16 registers. */
@inline
function plane4As<T>(
  tiles: usize,
  rowTiles: i32,
  blocks: i32,
  record0: usize,
  record1: usize,
  record2: usize,
  record3: usize,
  out0: usize,
  out1: usize,
  out2: usize,
  out3: usize,
  factor: f32,
): void {
  const m0 = mask0()
  const m1 = mask1()
  const m2 = mask2()
  // The records of tokens 1 to 3 are addressed from token 0's, so that one pointer moves.
  record1 -= record0
  record2 -= record0
  record3 -= record0
  do {
    for (let half: usize = 0; half < 2; half++) {
      let y00 = v128.load(out0)
      let y01 = v128.load(out0, 16)
      let y10 = v128.load(out1)
      let y11 = v128.load(out1, 16)
      let y20 = v128.load(out2)
      let y21 = v128.load(out2, 16)
      let y30 = v128.load(out3)
      let y31 = v128.load(out3, 16)
      let tile = tiles
      let record = record0
      let block = blocks
      do {
        let i00 = i32x4.splat(0)
        let i01 = i00
        let i10 = i00
        let i11 = i00
        let i20 = i00
        let i21 = i00
        let i30 = i00
        let i31 = i00
        let weights = tile + CODES + (half << 5)
        let codes = record
        let step = 4
        do {
          const w0 = v128.load(weights)
          const w1 = v128.load(weights, 16)
          let p0 = v128.and(w0, m0)
          let p1 = v128.and(w1, m0)
          let x = v128.load32_splat(codes)
          i00 = dot<T>(i00, p0, x)
          i01 = dot<T>(i01, p1, x)
          x = v128.load32_splat(codes + record1)
          i10 = dot<T>(i10, p0, x)
          i11 = dot<T>(i11, p1, x)
          x = v128.load32_splat(codes + record2)
          i20 = dot<T>(i20, p0, x)
          i21 = dot<T>(i21, p1, x)
          x = v128.load32_splat(codes + record3)
          i30 = dot<T>(i30, p0, x)
          i31 = dot<T>(i31, p1, x)
          p0 = part1(w0, m0, m1)
          p1 = part1(w1, m0, m1)
          x = v128.load32_splat(codes, 4)
          i00 = dot<T>(i00, p0, x)
          i01 = dot<T>(i01, p1, x)
          x = v128.load32_splat(codes + record1, 4)
          i10 = dot<T>(i10, p0, x)
          i11 = dot<T>(i11, p1, x)
          x = v128.load32_splat(codes + record2, 4)
          i20 = dot<T>(i20, p0, x)
          i21 = dot<T>(i21, p1, x)
          x = v128.load32_splat(codes + record3, 4)
          i30 = dot<T>(i30, p0, x)
          i31 = dot<T>(i31, p1, x)
          if (!ASC_FEATURE_RELAXED_SIMD) {
            p0 = v128.and(w0, m2)
            p1 = v128.and(w1, m2)
            x = v128.load32_splat(codes, 8)
            i00 = dot<T>(i00, p0, x)
            i01 = dot<T>(i01, p1, x)
            x = v128.load32_splat(codes + record1, 8)
            i10 = dot<T>(i10, p0, x)
            i11 = dot<T>(i11, p1, x)
            x = v128.load32_splat(codes + record2, 8)
            i20 = dot<T>(i20, p0, x)
            i21 = dot<T>(i21, p1, x)
            x = v128.load32_splat(codes + record3, 8)
            i30 = dot<T>(i30, p0, x)
            i31 = dot<T>(i31, p1, x)
            p0 = i16x8.shr_u(w0, 12)
            p1 = i16x8.shr_u(w1, 12)
            x = v128.load32_splat(codes, 12)
            i00 = dot<T>(i00, p0, x)
            i01 = dot<T>(i01, p1, x)
            x = v128.load32_splat(codes + record1, 12)
            i10 = dot<T>(i10, p0, x)
            i11 = dot<T>(i11, p1, x)
            x = v128.load32_splat(codes + record2, 12)
            i20 = dot<T>(i20, p0, x)
            i21 = dot<T>(i21, p1, x)
            x = v128.load32_splat(codes + record3, 12)
            i30 = dot<T>(i30, p0, x)
            i31 = dot<T>(i31, p1, x)
          }
          weights += 64
          codes += STEP
        } while (--step)
        const s = v128.load8x8_u(tile + (half << 3))
        const sz = i16x8.mul(s, v128.load8x8_u(tile + (half << 3), 16))
        const s0 = factors<T>(s, false)
        const s1 = factors<T>(s, true)
        const z0 = products(sz, false)
        const z1 = products(sz, true)
        let codeSum = v128.load32_splat(record, SUM)
        let scale = f32x4.splat(load<f32>(record, SCALE) * factor)
        y00 = settle<T>(y00, i00, s0, z0, codeSum, scale)
        y01 = settle<T>(y01, i01, s1, z1, codeSum, scale)
        codeSum = v128.load32_splat(record + record1, SUM)
        scale = f32x4.splat(load<f32>(record + record1, SCALE) * factor)
        y10 = settle<T>(y10, i10, s0, z0, codeSum, scale)
        y11 = settle<T>(y11, i11, s1, z1, codeSum, scale)
        codeSum = v128.load32_splat(record + record2, SUM)
        scale = f32x4.splat(load<f32>(record + record2, SCALE) * factor)
        y20 = settle<T>(y20, i20, s0, z0, codeSum, scale)
        y21 = settle<T>(y21, i21, s1, z1, codeSum, scale)
        codeSum = v128.load32_splat(record + record3, SUM)
        scale = f32x4.splat(load<f32>(record + record3, SCALE) * factor)
        y30 = settle<T>(y30, i30, s0, z0, codeSum, scale)
        y31 = settle<T>(y31, i31, s1, z1, codeSum, scale)
        tile += TILE
        record += RECORD
      } while (--block)
      v128.store(out0, y00)
      v128.store(out0, y01, 16)
      v128.store(out1, y10)
      v128.store(out1, y11, 16)
      v128.store(out2, y20)
      v128.store(out2, y21, 16)
      v128.store(out3, y30)
      v128.store(out3, y31, 16)
      out0 += 32
      out1 += 32
      out2 += 32
      out3 += 32
    }
    tiles += <usize>blocks * TILE
  } while (--rowTiles)
}
