/**
 * @module
 * The two ends of the model: a token's row of the embedding on the way in, a logit for every row of the head on the way
 * out.
 */
import { model } from './model.ts'
import { FINE, plane1, planeBytes } from './multiply.ts'
import { normalise } from './record.ts'
import { writeAngles } from './rope.ts'
import { clear, scaleRows } from './vector.ts'

/**
 * A head of two planes is read whole in the first only; the second refines the tiles that hold one of this many best
 * rows. The logits of the others keep the first plane's error, which is too small to bring them into the sampled few.
 */
const REFINED_TILES = 256

/** Starts a chunk: x = the embedding of `model.tokens`, angles for the positions from `position` on. */
export function begin(count: i32, position: i32): void {
  for (let t = 0; t < count; t++) {
    const token = load<i32>(model.tokens + ((<usize>t) << 2))
    embedRow(token, model.x + ((<usize>(t * model.hidden)) << 2))
    writeAngles(position + t, model.angles + ((<usize>(t * model.headDim)) << 2))
  }
}

/** Dequantises one row: R · Σ over planes of s · (8 q - z). */
function embedRow(row: i32, to: usize): void {
  const embed = model.embed
  const blocks = model.hidden >>> 5
  const scale = load<f32>(embed.scales + ((<usize>row) << 2))
  const planeSize = planeBytes(model.vocab, model.hidden)
  const lane = <usize>(row & 15)
  let tile = embed.tiles + planeBytes(row & ~15, model.hidden)
  for (let block = 0; block < blocks; block++) {
    for (let pair: usize = 0; pair < 16; pair++) {
      const byte = <usize>32 + (pair >>> 2) * 64 + (lane << 2) + (pair & 3)
      let low: f32 = 0
      let high: f32 = 0
      let factor: f32 = 1
      for (let plane = 0; plane < embed.planes; plane++) {
        const at = tile + <usize>plane * planeSize
        const codes = <i32>load<u8>(at + byte)
        const s = <i32>load<u8>(at + lane)
        const z = <i32>load<u8>(at + lane, 16)
        low += <f32>(s * (8 * (codes & 15) - z)) * factor
        high += <f32>(s * (8 * (codes >>> 4) - z)) * factor
        factor = FINE
      }
      const column = ((<usize>block) << 5) + ((pair >>> 2) << 3) + (pair & 3)
      store<f32>(to + (column << 2), low * scale)
      store<f32>(to + (column << 2), high * scale, 16)
    }
    tile += 288
  }
}

/** logits = head · norm(x) of the chunk's token `t`. */
export function head(t: i32): void {
  const matrix = model.head
  const hidden = model.hidden
  const blocks = hidden >>> 5
  const tiles = (model.vocab + 15) >>> 4
  const logits = model.logits
  normalise(model.x + ((<usize>(t * hidden)) << 2), model.norm, model.normEps, hidden, model.h, model.records)
  clear(logits, (<usize>tiles) << 6)
  plane1(matrix.tiles, tiles, blocks, model.records, logits, 1)
  if (matrix.planes > 1) refine(tiles, blocks)
  scaleRows(logits, logits, matrix.scales, tiles << 4)
}

/** Adds the second plane to the tiles whose best row is among the best. */
function refine(tiles: i32, blocks: i32): void {
  const matrix = model.head
  const logits = model.logits
  const best = model.tileMax
  for (let tile = 0; tile < tiles; tile++) store<i32>(best + ((<usize>tile) << 2), orderOf(bestOf(tile)))
  const padded = (tiles + 3) & ~3
  for (let tile = tiles; tile < padded; tile++) store<i32>(best + ((<usize>tile) << 2), i32.MIN_VALUE)
  const limit = largest(REFINED_TILES, best, padded)
  const second = matrix.tiles + planeBytes(model.vocab, model.hidden)
  const rowBytes = planeBytes(16, model.hidden)
  for (let tile = 0; tile < tiles; tile++) {
    if (load<i32>(best + ((<usize>tile) << 2)) >= limit) {
      plane1(second + <usize>tile * rowBytes, 1, blocks, model.records, logits + ((<usize>tile) << 6), FINE)
    }
  }
}

/** The largest logit of a tile's rows; the padding rows after the vocabulary have no say. */
function bestOf(tile: i32): f32 {
  const at = (<usize>tile) << 6
  const logits = model.logits + at
  const scales = model.head.scales + at
  const rows = model.vocab - (tile << 4)
  let best = -f32.MAX_VALUE
  for (let row = 0; row < min(rows, 16); row++) {
    best = max(best, load<f32>(logits + ((<usize>row) << 2)) * load<f32>(scales + ((<usize>row) << 2)))
  }
  return best
}

/** A float's bits as an integer of the same order. */
@inline
function orderOf(x: f32): i32 {
  const bits = reinterpret<i32>(x)
  return bits ^ ((bits >> 31) & 0x7fffffff)
}

/** The n-th largest of `length` integers (a multiple of 4), or the smallest integer there is if they are fewer. */
function largest(n: i32, values: usize, length: i32): i32 {
  let limit = i32.MIN_VALUE
  // From the top bit down: raise the limit wherever n values still reach it. Adding 2^31 to the minimum gives 0.
  for (let bit = 31; bit >= 0; bit--) {
    const higher = limit + (1 << bit)
    if (reaching(higher, values, length) >= n) limit = higher
  }
  return limit
}

function reaching(limit: i32, values: usize, length: i32): i32 {
  const limits = i32x4.splat(limit)
  let count = i32x4.splat(0)
  const end = values + ((<usize>length) << 2)
  while (values < end) {
    count = i32x4.sub(count, i32x4.ge_s(v128.load(values), limits))
    values += 16
  }
  return (
    i32x4.extract_lane(count, 0) +
    i32x4.extract_lane(count, 1) +
    i32x4.extract_lane(count, 2) +
    i32x4.extract_lane(count, 3)
  )
}
