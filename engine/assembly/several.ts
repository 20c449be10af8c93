/**
 * @module
 * The matrix of multiply.ts times several tokens at once, to the same bits: every tile is unpacked once for all of them.
 */
import {
  add,
  factors,
  inPairs,
  mask0,
  mask1,
  mask2,
  PARTS,
  part0,
  part1,
  part2,
  part3,
  products,
  settle,
  start,
} from './dot.ts'
import { CODES, FINE, multiply, TILE } from './multiply.ts'
import { model } from './model.ts'
import { RECORD, SCALE, SUM } from './record.ts'

/** Bytes of a row group's unpacked codes. */
const GROUP: usize = PARTS * 64
/**
 * A tile's codes, unpacked: [4 row groups][4 steps][PARTS] vectors; then of each row group what its sums are multiplied by and
 * what is taken off (dot.ts). The address is known when the module is compiled, so runtimes that check every access to
 * memory, as workerd does, know these to be good.
 */
const UNPACKED = memory.data(1152, 16)
const FACTORS: usize = 1024

/** One of the tokens: its records, and where its rows are added up. */
@unmanaged
class Token {
  records: usize
  out: usize
}

const TOKEN = offsetof<Token>()

@inline
function tokenAt(i: i32): Token {
  return changetype<Token>(model.batch + <usize>i * TOKEN)
}

/** Makes token `i` of the next {@link multiplySeveral}, one of at most CHUNK. */
export function listToken(i: i32, records: usize, out: usize): void {
  const token = tokenAt(i)
  token.records = records
  token.out = out
}

/** out[rowTiles · 16] += the matrix times the records of each of the first `count` listed tokens. */
export function multiplySeveral(tiles: usize, planes: i32, rowTiles: i32, blocks: i32, count: i32): void {
  if (count > 1) {
    if (inPairs()) multiplyAs<i16>(tiles, planes, rowTiles, blocks, count)
    else multiplyAs<i32>(tiles, planes, rowTiles, blocks, count)
  }
  if ((count & 1) !== 0) {
    const last = tokenAt(count - 1)
    multiply(tiles, planes, rowTiles, blocks, last.records, last.out)
  }
}

/** All tokens but an odd last one. */
@inline
function multiplyAs<T>(tiles: usize, planes: i32, rowTiles: i32, blocks: i32, count: i32): void {
  const first = model.batch
  const end = first + <usize>(count & ~1) * TOKEN
  let factor: f32 = 1
  do {
    let outOffset: usize = 0
    for (let rowTile = 0; rowTile < rowTiles; rowTile++) {
      let recordOffset: usize = 0
      for (let block = 0; block < blocks; block++) {
        unpack<T>(tiles)
        for (let at = first; at < end; at += 2 * TOKEN) {
          const a = changetype<Token>(at)
          const b = changetype<Token>(at + TOKEN)
          addTile<T>(
            a.records + recordOffset,
            b.records + recordOffset,
            a.out + outOffset,
            b.out + outOffset,
            factor,
          )
        }
        tiles += TILE
        recordOffset += RECORD
      }
      outOffset += 64
    }
    factor = FINE
  } while (--planes)
}

@inline
function unpack<T>(tile: usize): void {
  const m0 = mask0()
  const m1 = mask1()
  const m2 = mask2()
  for (let group: usize = 0; group < 4; group++) {
    let weights = tile + CODES + (group << 4)
    let to = UNPACKED + group * GROUP
    for (let step = 0; step < 4; step++) {
      const w = v128.load(weights)
      v128.store(to, part0(w, m0))
      v128.store(to, part1(w, m0, m1), 16)
      if (!ASC_FEATURE_RELAXED_SIMD) {
        v128.store(to, part2(w, m2), 32)
        v128.store(to, part3(w), 48)
      }
      weights += 64
      to += PARTS * 16
    }
  }
  let to = UNPACKED + FACTORS
  for (let half: usize = 0; half < 16; half += 8) {
    const s = v128.load8x8_u(tile + half)
    const sz = i16x8.mul(s, v128.load8x8_u(tile + half, 16))
    v128.store(to, factors<T>(s, false))
    v128.store(to, products(sz, false), 16)
    v128.store(to, factors<T>(s, true), 32)
    v128.store(to, products(sz, true), 48)
    to += 64
  }
}

/** The unpacked tile, for two tokens: 8 sums, a vector of weights and two of codes fit 16 registers. */
@inline
function addTile<T>(record0: usize, record1: usize, out0: usize, out1: usize, factor: f32): void {
  let i00: v128
  let i01: v128
  let i02: v128
  let i03: v128
  let i10: v128
  let i11: v128
  let i12: v128
  let i13: v128
  if (ASC_FEATURE_RELAXED_SIMD) {
    let x0 = v128.load32_splat(record0)
    let x1 = v128.load32_splat(record1)
    let w = v128.load(UNPACKED)
    i00 = start<T>(w, x0)
    i10 = start<T>(w, x1)
    w = v128.load(UNPACKED, GROUP * 1)
    i01 = start<T>(w, x0)
    i11 = start<T>(w, x1)
    w = v128.load(UNPACKED, GROUP * 2)
    i02 = start<T>(w, x0)
    i12 = start<T>(w, x1)
    w = v128.load(UNPACKED, GROUP * 3)
    i03 = start<T>(w, x0)
    i13 = start<T>(w, x1)
    x0 = v128.load32_splat(record0, 4)
    x1 = v128.load32_splat(record1, 4)
    w = v128.load(UNPACKED, 16)
    i00 = add<T>(i00, w, x0)
    i10 = add<T>(i10, w, x1)
    w = v128.load(UNPACKED, GROUP * 1 + 16)
    i01 = add<T>(i01, w, x0)
    i11 = add<T>(i11, w, x1)
    w = v128.load(UNPACKED, GROUP * 2 + 16)
    i02 = add<T>(i02, w, x0)
    i12 = add<T>(i12, w, x1)
    w = v128.load(UNPACKED, GROUP * 3 + 16)
    i03 = add<T>(i03, w, x0)
    i13 = add<T>(i13, w, x1)
    x0 = v128.load32_splat(record0, 8)
    x1 = v128.load32_splat(record1, 8)
    w = v128.load(UNPACKED, 32)
    i00 = add<T>(i00, w, x0)
    i10 = add<T>(i10, w, x1)
    w = v128.load(UNPACKED, GROUP * 1 + 32)
    i01 = add<T>(i01, w, x0)
    i11 = add<T>(i11, w, x1)
    w = v128.load(UNPACKED, GROUP * 2 + 32)
    i02 = add<T>(i02, w, x0)
    i12 = add<T>(i12, w, x1)
    w = v128.load(UNPACKED, GROUP * 3 + 32)
    i03 = add<T>(i03, w, x0)
    i13 = add<T>(i13, w, x1)
    x0 = v128.load32_splat(record0, 12)
    x1 = v128.load32_splat(record1, 12)
    w = v128.load(UNPACKED, 48)
    i00 = add<T>(i00, w, x0)
    i10 = add<T>(i10, w, x1)
    w = v128.load(UNPACKED, GROUP * 1 + 48)
    i01 = add<T>(i01, w, x0)
    i11 = add<T>(i11, w, x1)
    w = v128.load(UNPACKED, GROUP * 2 + 48)
    i02 = add<T>(i02, w, x0)
    i12 = add<T>(i12, w, x1)
    w = v128.load(UNPACKED, GROUP * 3 + 48)
    i03 = add<T>(i03, w, x0)
    i13 = add<T>(i13, w, x1)
    x0 = v128.load32_splat(record0, 16)
    x1 = v128.load32_splat(record1, 16)
    w = v128.load(UNPACKED, 64)
    i00 = add<T>(i00, w, x0)
    i10 = add<T>(i10, w, x1)
    w = v128.load(UNPACKED, GROUP * 1 + 64)
    i01 = add<T>(i01, w, x0)
    i11 = add<T>(i11, w, x1)
    w = v128.load(UNPACKED, GROUP * 2 + 64)
    i02 = add<T>(i02, w, x0)
    i12 = add<T>(i12, w, x1)
    w = v128.load(UNPACKED, GROUP * 3 + 64)
    i03 = add<T>(i03, w, x0)
    i13 = add<T>(i13, w, x1)
    x0 = v128.load32_splat(record0, 20)
    x1 = v128.load32_splat(record1, 20)
    w = v128.load(UNPACKED, 80)
    i00 = add<T>(i00, w, x0)
    i10 = add<T>(i10, w, x1)
    w = v128.load(UNPACKED, GROUP * 1 + 80)
    i01 = add<T>(i01, w, x0)
    i11 = add<T>(i11, w, x1)
    w = v128.load(UNPACKED, GROUP * 2 + 80)
    i02 = add<T>(i02, w, x0)
    i12 = add<T>(i12, w, x1)
    w = v128.load(UNPACKED, GROUP * 3 + 80)
    i03 = add<T>(i03, w, x0)
    i13 = add<T>(i13, w, x1)
    x0 = v128.load32_splat(record0, 24)
    x1 = v128.load32_splat(record1, 24)
    w = v128.load(UNPACKED, 96)
    i00 = add<T>(i00, w, x0)
    i10 = add<T>(i10, w, x1)
    w = v128.load(UNPACKED, GROUP * 1 + 96)
    i01 = add<T>(i01, w, x0)
    i11 = add<T>(i11, w, x1)
    w = v128.load(UNPACKED, GROUP * 2 + 96)
    i02 = add<T>(i02, w, x0)
    i12 = add<T>(i12, w, x1)
    w = v128.load(UNPACKED, GROUP * 3 + 96)
    i03 = add<T>(i03, w, x0)
    i13 = add<T>(i13, w, x1)
    x0 = v128.load32_splat(record0, 28)
    x1 = v128.load32_splat(record1, 28)
    w = v128.load(UNPACKED, 112)
    i00 = add<T>(i00, w, x0)
    i10 = add<T>(i10, w, x1)
    w = v128.load(UNPACKED, GROUP * 1 + 112)
    i01 = add<T>(i01, w, x0)
    i11 = add<T>(i11, w, x1)
    w = v128.load(UNPACKED, GROUP * 2 + 112)
    i02 = add<T>(i02, w, x0)
    i12 = add<T>(i12, w, x1)
    w = v128.load(UNPACKED, GROUP * 3 + 112)
    i03 = add<T>(i03, w, x0)
    i13 = add<T>(i13, w, x1)
  } else {
    i00 = i32x4.splat(0)
    i01 = i00
    i02 = i00
    i03 = i00
    i10 = i00
    i11 = i00
    i12 = i00
    i13 = i00
    let weights = UNPACKED
    let codes0 = record0
    let codes1 = record1
    let part = 16
    do {
      const x0 = v128.load32_splat(codes0)
      const x1 = v128.load32_splat(codes1)
      let w = v128.load(weights)
      i00 = add<T>(i00, w, x0)
      i10 = add<T>(i10, w, x1)
      w = v128.load(weights, GROUP * 1)
      i01 = add<T>(i01, w, x0)
      i11 = add<T>(i11, w, x1)
      w = v128.load(weights, GROUP * 2)
      i02 = add<T>(i02, w, x0)
      i12 = add<T>(i12, w, x1)
      w = v128.load(weights, GROUP * 3)
      i03 = add<T>(i03, w, x0)
      i13 = add<T>(i13, w, x1)
      weights += 16
      codes0 += 4
      codes1 += 4
    } while (--part)
  }
  addRows<T>(out0, record0, factor, i00, i01, i02, i03)
  addRows<T>(out1, record1, factor, i10, i11, i12, i13)
}

/** out[16] += a token's block, from the sums of the tile's four row groups. */
@inline
function addRows<T>(out: usize, record: usize, factor: f32, i0: v128, i1: v128, i2: v128, i3: v128): void {
  const scale = f32x4.splat(load<f32>(record, SCALE) * factor)
  const codeSum = v128.load32_splat(record, SUM)
  v128.store(
    out,
    settle<T>(v128.load(out), i0, v128.load(UNPACKED, FACTORS), v128.load(UNPACKED, FACTORS + 16), codeSum, scale),
  )
  v128.store(
    out,
    settle<T>(v128.load(out, 16), i1, v128.load(UNPACKED, FACTORS + 32), v128.load(UNPACKED, FACTORS + 48), codeSum, scale),
    16,
  )
  v128.store(
    out,
    settle<T>(v128.load(out, 32), i2, v128.load(UNPACKED, FACTORS + 64), v128.load(UNPACKED, FACTORS + 80), codeSum, scale),
    32,
  )
  v128.store(
    out,
    settle<T>(v128.load(out, 48), i3, v128.load(UNPACKED, FACTORS + 96), v128.load(UNPACKED, FACTORS + 112), codeSum, scale),
    48,
  )
}
