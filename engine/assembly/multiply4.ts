/**
 * @module
 * The matrix of multiply.ts times four tokens at once, to the same bits.
 */
import { dot, factors, mask0, mask1, mask2, part1, products, quads, settle } from './dot.ts'
import { CODES, FINE, STEP, secondPlane, TILE } from './multiply.ts'
import { RECORD, SCALE, SUM } from './record.ts'

/** out[token, rowTiles · 16] += the matrix times four tokens' records; every weight is unpacked once. */
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
