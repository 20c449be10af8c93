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
 * Four rows lie in the four lanes of a vector, hence no sum across lanes. The plain module keeps loop bodies small, since
 * older engines schedule a whole body at once and run out of registers (Node 20 loses a quarter of its speed on unrolled
 * ones); whatever runs the relaxed one does not, and there a block is one run of instructions.
 */
import {
  add,
  addHigh,
  addLow,
  highMask,
  inPairs,
  joined,
  mask0,
  mask1,
  mask2,
  part0,
  part1,
  part2,
  part3,
  settleRows,
  startHigh,
  startLow,
  unsigned,
} from './dot.ts'
import { model } from './model.ts'
import { RECORD, SCALE, SUM } from './record.ts'

export const TILE: usize = 288
/** Where a tile's codes begin, after its scales and zero points. */
export const CODES: usize = 32
/** Tiles below which a stream of its own is not worth starting. */
const LONG_STREAM: i32 = 64
/** Bytes of a record's codes that 8 columns take. */
const STEP: usize = ASC_FEATURE_RELAXED_SIMD ? 8 : 16
/** What the second plane of `q8` counts. */
export const FINE: f32 = 0.0625

/** Bytes of one plane of a matrix [rows, cols]. */
@inline
export function planeBytes(rows: i32, cols: i32): usize {
  return <usize>(((rows + 15) >>> 4) * (cols >>> 5)) * TILE
}

/**
 * Weights are read as several streams side by side, some blocks of each in turn, because a machine fetches only so many
 * bytes ahead in one, and from a memory that answers late one stream is slower than the arithmetic. What is best was
 * measured (docs/findings.md): four streams on machines whose dot products are pairs; two, and two blocks at a time, on
 * those with quads, which fetch nothing ahead in four, nor in two of single blocks. The plain module has more arithmetic to
 * wait for than memory, and may run anywhere: one stream.
 *
 * @param blocks how wide the matrix is
 */
@inline
function streams(blocks: i32): i32 {
  if (inPairs()) return 4
  return ASC_FEATURE_RELAXED_SIMD && (blocks & 1) === 0 ? 2 : 1
}

/** Blocks of a stream in its turn. */
@inline
function turn(blocks: i32): i32 {
  return inPairs() || (blocks & 1) !== 0 ? 1 : 2
}

/** How many experts are read side by side, each a short stream of its own: never more than a batch (model.ts). */
export function expertStreams(): i32 {
  return inPairs() ? 4 : 1
}

/** out[rowTiles · 16] += the matrix times one token's records, planes in order. */
export function multiply(
  tiles: usize,
  planes: i32,
  rowTiles: i32,
  blocks: i32,
  records: usize,
  out: usize,
): void {
  const plane = <usize>(rowTiles * blocks) * TILE
  const count = streams(blocks)
  const each = rowTiles / count
  if (each * blocks >= LONG_STREAM) {
    sideBySide(count, each, tiles, planes, plane, blocks, records, out)
    const done = count * each
    tiles += <usize>(done * blocks) * TILE
    out += (<usize>done) << 6
    rowTiles -= done
  }
  if (rowTiles > 0) sideBySide(1, rowTiles, tiles, planes, plane, blocks, records, out)
}

/** `count` streams of `each` row tiles, end to end. */
function sideBySide(
  count: i32,
  each: i32,
  tiles: usize,
  planes: i32,
  plane: usize,
  blocks: i32,
  records: usize,
  out: usize,
): void {
  const run = turn(blocks)
  for (let i = 0; i < count; i++) {
    listTerms(termAt(i * run), run, count, tiles, planes, plane, blocks, records, out)
    tiles += <usize>(each * blocks) * TILE
    out += (<usize>each) << 6
  }
  sumTerms(count * planes * blocks, each, blocks)
}

// ---- Terms --------------------------------------------------------------------------------------------------------

/** A tile of one block, what it is multiplied by, and where its rows are added up. */
@unmanaged
class Term {
  tile: usize
  record: usize
  factor: f32
  out: usize
}

const TERM = offsetof<Term>()

/** The list's place `i`. */
@inline
export function termAt(i: i32): usize {
  return model.terms + <usize>i * TERM
}

/**
 * Lists what the first row tile of a matrix is the sum of, so that several matrices can take turns.
 *
 * @param at where the list of this matrix begins
 * @param run terms of a turn; a divisor of `blocks`
 * @param matrices how many take turns
 * @param plane bytes of one plane
 * @param factor what the first of the planes counts
 */
export function listTerms(
  at: usize,
  run: i32,
  matrices: i32,
  tiles: usize,
  planes: i32,
  plane: usize,
  blocks: i32,
  records: usize,
  out: usize,
  factor: f32 = 1,
): void {
  const others = <usize>((matrices - 1) * run) * TERM
  do {
    let tile = tiles
    let record = records
    for (let block = 0; block < blocks; block += run) {
      for (let i = 0; i < run; i++) {
        const term = changetype<Term>(at)
        term.tile = tile
        term.record = record
        term.factor = factor
        term.out = out
        tile += TILE
        record += RECORD
        at += TERM
      }
      at += others
    }
    tiles += plane
    factor = FINE
  } while (--planes)
}

/** Adds up the listed terms, in order, for this row tile and the next ones of matrices that are `blocks` wide. */
export function sumTerms(count: i32, rowTiles: i32, blocks: i32): void {
  if (unsigned()) sumTermsAs<u32>(count, rowTiles, blocks)
  else if (inPairs()) sumTermsAs<i16>(count, rowTiles, blocks)
  else sumTermsAs<i32>(count, rowTiles, blocks)
}

/** T says how the relaxed module forms sums (dot.ts); to the plain one it says nothing. */
@inline
function sumTermsAs<T>(count: i32, rowTiles: i32, blocks: i32): void {
  const m0 = mask0()
  const m1 = mask1()
  const m2 = mask2()
  const mh = highMask<T>()
  const rowTileBytes = <usize>blocks * TILE
  let tileOffset: usize = 0
  let outOffset: usize = 0
  do {
    let term = changetype<Term>(model.terms)
    let left = count
    do {
      const tile = term.tile + tileOffset
      const record = term.record
      let i0: v128
      let i1: v128
      let i2: v128
      let i3: v128
      if (ASC_FEATURE_RELAXED_SIMD) {
        let x0 = v128.load32_splat(record)
        let x1 = v128.load32_splat(record, 4)
        let w = v128.load(tile, 32)
        i0 = startLow<T>(w, x0, m0)
        let h0 = startHigh<T>(i0, w, x1, mh)
        w = v128.load(tile, 48)
        i1 = startLow<T>(w, x0, m0)
        let h1 = startHigh<T>(i1, w, x1, mh)
        w = v128.load(tile, 64)
        i2 = startLow<T>(w, x0, m0)
        let h2 = startHigh<T>(i2, w, x1, mh)
        w = v128.load(tile, 80)
        i3 = startLow<T>(w, x0, m0)
        let h3 = startHigh<T>(i3, w, x1, mh)
        x0 = v128.load32_splat(record, STEP * 1)
        x1 = v128.load32_splat(record, STEP * 1 + 4)
        w = v128.load(tile, 96)
        i0 = addLow<T>(i0, h0, w, x0, m0)
        h0 = addHigh<T>(i0, h0, w, x1, mh)
        w = v128.load(tile, 112)
        i1 = addLow<T>(i1, h1, w, x0, m0)
        h1 = addHigh<T>(i1, h1, w, x1, mh)
        w = v128.load(tile, 128)
        i2 = addLow<T>(i2, h2, w, x0, m0)
        h2 = addHigh<T>(i2, h2, w, x1, mh)
        w = v128.load(tile, 144)
        i3 = addLow<T>(i3, h3, w, x0, m0)
        h3 = addHigh<T>(i3, h3, w, x1, mh)
        x0 = v128.load32_splat(record, STEP * 2)
        x1 = v128.load32_splat(record, STEP * 2 + 4)
        w = v128.load(tile, 160)
        i0 = addLow<T>(i0, h0, w, x0, m0)
        h0 = addHigh<T>(i0, h0, w, x1, mh)
        w = v128.load(tile, 176)
        i1 = addLow<T>(i1, h1, w, x0, m0)
        h1 = addHigh<T>(i1, h1, w, x1, mh)
        w = v128.load(tile, 192)
        i2 = addLow<T>(i2, h2, w, x0, m0)
        h2 = addHigh<T>(i2, h2, w, x1, mh)
        w = v128.load(tile, 208)
        i3 = addLow<T>(i3, h3, w, x0, m0)
        h3 = addHigh<T>(i3, h3, w, x1, mh)
        x0 = v128.load32_splat(record, STEP * 3)
        x1 = v128.load32_splat(record, STEP * 3 + 4)
        w = v128.load(tile, 224)
        i0 = addLow<T>(i0, h0, w, x0, m0)
        h0 = addHigh<T>(i0, h0, w, x1, mh)
        w = v128.load(tile, 240)
        i1 = addLow<T>(i1, h1, w, x0, m0)
        h1 = addHigh<T>(i1, h1, w, x1, mh)
        w = v128.load(tile, 256)
        i2 = addLow<T>(i2, h2, w, x0, m0)
        h2 = addHigh<T>(i2, h2, w, x1, mh)
        w = v128.load(tile, 272)
        i3 = addLow<T>(i3, h3, w, x0, m0)
        h3 = addHigh<T>(i3, h3, w, x1, mh)
        i0 = joined<T>(i0, h0)
        i1 = joined<T>(i1, h1)
        i2 = joined<T>(i2, h2)
        i3 = joined<T>(i3, h3)
      } else {
        i0 = i32x4.splat(0)
        i1 = i0
        i2 = i0
        i3 = i0
        let weights = tile + CODES
        let codes = record
        let step = 4
        do {
          let x0 = v128.load32_splat(codes)
          let x1 = v128.load32_splat(codes, 4)
          const w0 = v128.load(weights)
          i0 = add<T>(add<T>(i0, part0(w0, m0), x0), part1(w0, m0, m1), x1)
          const w1 = v128.load(weights, 16)
          i1 = add<T>(add<T>(i1, part0(w1, m0), x0), part1(w1, m0, m1), x1)
          const w2 = v128.load(weights, 32)
          i2 = add<T>(add<T>(i2, part0(w2, m0), x0), part1(w2, m0, m1), x1)
          const w3 = v128.load(weights, 48)
          i3 = add<T>(add<T>(i3, part0(w3, m0), x0), part1(w3, m0, m1), x1)
          x0 = v128.load32_splat(codes, 8)
          x1 = v128.load32_splat(codes, 12)
          i0 = add<T>(add<T>(i0, part2(w0, m2), x0), part3(w0), x1)
          i1 = add<T>(add<T>(i1, part2(w1, m2), x0), part3(w1), x1)
          i2 = add<T>(add<T>(i2, part2(w2, m2), x0), part3(w2), x1)
          i3 = add<T>(add<T>(i3, part2(w3, m2), x0), part3(w3), x1)
          weights += 64
          codes += STEP
        } while (--step)
      }
      const scale = f32x4.splat(load<f32>(record, SCALE) * term.factor)
      const codeSum = v128.load32_splat(record, SUM)
      const out = term.out + outOffset
      let s = v128.load8x8_u(tile)
      let sz = i16x8.mul(s, v128.load8x8_u(tile, 16))
      settleRows<T>(out, i0, i1, s, sz, codeSum, scale)
      s = v128.load8x8_u(tile, 8)
      sz = i16x8.mul(s, v128.load8x8_u(tile, 24))
      settleRows<T>(out + 32, i2, i3, s, sz, codeSum, scale)
      term = changetype<Term>(changetype<usize>(term) + TERM)
    } while (--left)
    tileOffset += rowTileBytes
    outOffset += 64
  } while (--rowTiles)
}
