/**
 * @module
 * The matrix of multiply.ts times four tokens at once, to the same bits.
 */
import { addParts01, addParts23, columns, mask0, mask1, mask2, inPairs, settleRows } from './dot.ts'
import { CODES, FINE, TILE } from './multiply.ts'
import { RECORD, SCALE, SUM } from './record.ts'

/** Parts of 8 columns' codes (dot.ts), and the vectors of a block's. */
const STEP: usize = ASC_FEATURE_RELAXED_SIMD ? 32 : 64
/** A token's record of the block at hand with each part of its codes, its scale and its sum in all lanes of a vector. */
const LANES: usize = STEP * 4 + 32
const LANE_SCALE: usize = STEP * 4
const LANE_SUM: usize = STEP * 4 + 16
/**
 * Those of the four tokens. The address is known when the module is compiled, so runtimes that check every access to memory
 * (workerd does, on what a third of the instructions would be) know these to be good.
 */
const TOKENS = memory.data(1152, 16)

/**
 * out[token, rowTiles · 16] += the matrix times four tokens' records; every weight is unpacked once. Goes block by block
 * through all row tiles, so that a block's codes are spread once.
 */
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
  const rowTileBytes = <usize>blocks * TILE
  let factor: f32 = 1
  do {
    let at: usize = 0
    for (let block = 0; block < blocks; block++) {
      spread(record0 + at, 0, factor)
      spread(record1 + at, 1, factor)
      spread(record2 + at, 2, factor)
      spread(record3 + at, 3, factor)
      if (inPairs()) block4As<i16>(tiles, rowTiles, rowTileBytes, out0, out1, out2, out3)
      else block4As<i32>(tiles, rowTiles, rowTileBytes, out0, out1, out2, out3)
      tiles += TILE
      at += RECORD
    }
    tiles += <usize>(rowTiles - 1) * rowTileBytes
    factor = FINE
  } while (--planes)
}

/** Puts one block of a token to where the kernel reads it, its scale times `factor`. */
function spread(record: usize, token: usize, factor: f32): void {
  const to = TOKENS + token * LANES
  for (let part: usize = 0; part < STEP * 4; part += 16) {
    v128.store(to + part, v128.load32_splat(record + (part >>> 2)))
  }
  v128.store(to, f32x4.splat(load<f32>(record, SCALE) * factor), LANE_SCALE)
  v128.store(to, v128.load32_splat(record, SUM), LANE_SUM)
}

/** One block of every row tile, eight rows at a time: 8 integer sums, 4 vectors of weights and one of codes fit 16 registers. */
@inline
function block4As<T>(
  tile: usize,
  rowTiles: i32,
  rowTileBytes: usize,
  out0: usize,
  out1: usize,
  out2: usize,
  out3: usize,
): void {
  const m0 = mask0()
  const m1 = mask1()
  const m2 = mask2()
  do {
    for (let half: usize = 0; half < 2; half++) {
      const codes = tile + CODES + (half << 5)
      let i00: v128
      let i01: v128
      let i10: v128
      let i11: v128
      let i20: v128
      let i21: v128
      let i30: v128
      let i31: v128
      if (ASC_FEATURE_RELAXED_SIMD) {
        let w0 = v128.load(codes)
        let w1 = v128.load(codes, 16)
        let x0 = v128.load(TOKENS)
        let x1 = v128.load(TOKENS, 16)
        i00 = columns<T>(w0, x0, x1, m0)
        i01 = columns<T>(w1, x0, x1, m0)
        x0 = v128.load(TOKENS, 1 * LANES)
        x1 = v128.load(TOKENS, 1 * LANES + 16)
        i10 = columns<T>(w0, x0, x1, m0)
        i11 = columns<T>(w1, x0, x1, m0)
        x0 = v128.load(TOKENS, 2 * LANES)
        x1 = v128.load(TOKENS, 2 * LANES + 16)
        i20 = columns<T>(w0, x0, x1, m0)
        i21 = columns<T>(w1, x0, x1, m0)
        x0 = v128.load(TOKENS, 3 * LANES)
        x1 = v128.load(TOKENS, 3 * LANES + 16)
        i30 = columns<T>(w0, x0, x1, m0)
        i31 = columns<T>(w1, x0, x1, m0)
        w0 = v128.load(codes, 64)
        w1 = v128.load(codes, 80)
        x0 = v128.load(TOKENS, STEP * 1)
        x1 = v128.load(TOKENS, STEP * 1 + 16)
        i00 = addParts01<T>(i00, w0, x0, x1, m0, m1)
        i01 = addParts01<T>(i01, w1, x0, x1, m0, m1)
        x0 = v128.load(TOKENS, 1 * LANES + STEP * 1)
        x1 = v128.load(TOKENS, 1 * LANES + STEP * 1 + 16)
        i10 = addParts01<T>(i10, w0, x0, x1, m0, m1)
        i11 = addParts01<T>(i11, w1, x0, x1, m0, m1)
        x0 = v128.load(TOKENS, 2 * LANES + STEP * 1)
        x1 = v128.load(TOKENS, 2 * LANES + STEP * 1 + 16)
        i20 = addParts01<T>(i20, w0, x0, x1, m0, m1)
        i21 = addParts01<T>(i21, w1, x0, x1, m0, m1)
        x0 = v128.load(TOKENS, 3 * LANES + STEP * 1)
        x1 = v128.load(TOKENS, 3 * LANES + STEP * 1 + 16)
        i30 = addParts01<T>(i30, w0, x0, x1, m0, m1)
        i31 = addParts01<T>(i31, w1, x0, x1, m0, m1)
        w0 = v128.load(codes, 128)
        w1 = v128.load(codes, 144)
        x0 = v128.load(TOKENS, STEP * 2)
        x1 = v128.load(TOKENS, STEP * 2 + 16)
        i00 = addParts01<T>(i00, w0, x0, x1, m0, m1)
        i01 = addParts01<T>(i01, w1, x0, x1, m0, m1)
        x0 = v128.load(TOKENS, 1 * LANES + STEP * 2)
        x1 = v128.load(TOKENS, 1 * LANES + STEP * 2 + 16)
        i10 = addParts01<T>(i10, w0, x0, x1, m0, m1)
        i11 = addParts01<T>(i11, w1, x0, x1, m0, m1)
        x0 = v128.load(TOKENS, 2 * LANES + STEP * 2)
        x1 = v128.load(TOKENS, 2 * LANES + STEP * 2 + 16)
        i20 = addParts01<T>(i20, w0, x0, x1, m0, m1)
        i21 = addParts01<T>(i21, w1, x0, x1, m0, m1)
        x0 = v128.load(TOKENS, 3 * LANES + STEP * 2)
        x1 = v128.load(TOKENS, 3 * LANES + STEP * 2 + 16)
        i30 = addParts01<T>(i30, w0, x0, x1, m0, m1)
        i31 = addParts01<T>(i31, w1, x0, x1, m0, m1)
        w0 = v128.load(codes, 192)
        w1 = v128.load(codes, 208)
        x0 = v128.load(TOKENS, STEP * 3)
        x1 = v128.load(TOKENS, STEP * 3 + 16)
        i00 = addParts01<T>(i00, w0, x0, x1, m0, m1)
        i01 = addParts01<T>(i01, w1, x0, x1, m0, m1)
        x0 = v128.load(TOKENS, 1 * LANES + STEP * 3)
        x1 = v128.load(TOKENS, 1 * LANES + STEP * 3 + 16)
        i10 = addParts01<T>(i10, w0, x0, x1, m0, m1)
        i11 = addParts01<T>(i11, w1, x0, x1, m0, m1)
        x0 = v128.load(TOKENS, 2 * LANES + STEP * 3)
        x1 = v128.load(TOKENS, 2 * LANES + STEP * 3 + 16)
        i20 = addParts01<T>(i20, w0, x0, x1, m0, m1)
        i21 = addParts01<T>(i21, w1, x0, x1, m0, m1)
        x0 = v128.load(TOKENS, 3 * LANES + STEP * 3)
        x1 = v128.load(TOKENS, 3 * LANES + STEP * 3 + 16)
        i30 = addParts01<T>(i30, w0, x0, x1, m0, m1)
        i31 = addParts01<T>(i31, w1, x0, x1, m0, m1)
      } else {
        i00 = i32x4.splat(0)
        i01 = i00
        i10 = i00
        i11 = i00
        i20 = i00
        i21 = i00
        i30 = i00
        i31 = i00
        let weights = codes
        let x = TOKENS
        let step = 4
        do {
          const w0 = v128.load(weights)
          const w1 = v128.load(weights, 16)
          let x0 = v128.load(x)
          let x1 = v128.load(x, 16)
          i00 = addParts01<T>(i00, w0, x0, x1, m0, m1)
          i01 = addParts01<T>(i01, w1, x0, x1, m0, m1)
          x0 = v128.load(x, 32)
          x1 = v128.load(x, 48)
          i00 = addParts23<T>(i00, w0, x0, x1, m2)
          i01 = addParts23<T>(i01, w1, x0, x1, m2)
          x0 = v128.load(x, 1 * LANES)
          x1 = v128.load(x, 1 * LANES + 16)
          i10 = addParts01<T>(i10, w0, x0, x1, m0, m1)
          i11 = addParts01<T>(i11, w1, x0, x1, m0, m1)
          x0 = v128.load(x, 1 * LANES + 32)
          x1 = v128.load(x, 1 * LANES + 48)
          i10 = addParts23<T>(i10, w0, x0, x1, m2)
          i11 = addParts23<T>(i11, w1, x0, x1, m2)
          x0 = v128.load(x, 2 * LANES)
          x1 = v128.load(x, 2 * LANES + 16)
          i20 = addParts01<T>(i20, w0, x0, x1, m0, m1)
          i21 = addParts01<T>(i21, w1, x0, x1, m0, m1)
          x0 = v128.load(x, 2 * LANES + 32)
          x1 = v128.load(x, 2 * LANES + 48)
          i20 = addParts23<T>(i20, w0, x0, x1, m2)
          i21 = addParts23<T>(i21, w1, x0, x1, m2)
          x0 = v128.load(x, 3 * LANES)
          x1 = v128.load(x, 3 * LANES + 16)
          i30 = addParts01<T>(i30, w0, x0, x1, m0, m1)
          i31 = addParts01<T>(i31, w1, x0, x1, m0, m1)
          x0 = v128.load(x, 3 * LANES + 32)
          x1 = v128.load(x, 3 * LANES + 48)
          i30 = addParts23<T>(i30, w0, x0, x1, m2)
          i31 = addParts23<T>(i31, w1, x0, x1, m2)
          weights += 64
          x += STEP
        } while (--step)
      }
      const scales = tile + (half << 3)
      const s = v128.load8x8_u(scales)
      const sz = i16x8.mul(s, v128.load8x8_u(scales, 16))
      let codeSum = v128.load(TOKENS, LANE_SUM)
      let scale = v128.load(TOKENS, LANE_SCALE)
      settleRows<T>(out0, i00, i01, s, sz, codeSum, scale)
      codeSum = v128.load(TOKENS, 1 * LANES + LANE_SUM)
      scale = v128.load(TOKENS, 1 * LANES + LANE_SCALE)
      settleRows<T>(out1, i10, i11, s, sz, codeSum, scale)
      codeSum = v128.load(TOKENS, 2 * LANES + LANE_SUM)
      scale = v128.load(TOKENS, 2 * LANES + LANE_SCALE)
      settleRows<T>(out2, i20, i21, s, sz, codeSum, scale)
      codeSum = v128.load(TOKENS, 3 * LANES + LANE_SUM)
      scale = v128.load(TOKENS, 3 * LANES + LANE_SCALE)
      settleRows<T>(out3, i30, i31, s, sz, codeSum, scale)
      out0 += 32
      out1 += 32
      out2 += 32
      out3 += 32
    }
    tile += rowTileBytes
  } while (--rowTiles)
}
