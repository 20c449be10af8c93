/**
 * @module
 * The two ends of the model: a token's row of the embedding on the way in, a logit for every row of the head on the way
 * out.
 */
import { model } from './model.ts'
import { FINE, listTerms, multiply, planeBytes, sumTerms, termAt } from './multiply.ts'
import { normalise } from './record.ts'
import { writeAngles } from './rope.ts'
import { clear, maxLanes, sumLanes } from './vector.ts'

/**
 * A head of two planes is read whole in the first only. The second, where there is one, refines the tiles with a row
 * within this many nats of the best; the others keep the first plane's error. On the teacher of the first model
 * (findings.md) 10 refines a third of the tiles, costs 8e-4 nats of KL and never changed the best row; 8 refines a
 * seventh and costs 3e-3.
 */
const REFINED_RANGE: f32 = 10

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
  const planes = row < embed.fineRows ? embed.planes : 1
  const lane = <usize>(row & 15)
  let tile = embed.tiles + planeBytes(row & ~15, model.hidden)
  for (let block = 0; block < blocks; block++) {
    for (let pair: usize = 0; pair < 16; pair++) {
      const byte = <usize>32 + (pair >>> 2) * 64 + (lane << 2) + (pair & 3)
      let low: f32 = 0
      let high: f32 = 0
      let factor: f32 = 1
      for (let plane = 0; plane < planes; plane++) {
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

/** logits = head · norm(x) of the chunk's token `t`; peaks = the largest of each tile of them. */
export function head(t: i32): void {
  const matrix = model.head
  const hidden = model.hidden
  const blocks = hidden >>> 5
  const tiles = (model.vocab + 15) >>> 4
  const logits = model.logits
  normalise(model.x + ((<usize>(t * hidden)) << 2), model.norm, model.normEps, hidden, model.h, model.records)
  clear(logits, (<usize>tiles) << 6)
  multiply(matrix.tiles, 1, tiles, blocks, model.records, logits)
  if (matrix.planes > 1) refine(tiles, blocks)
  scaleLogits()
}

/** Turns sums into logits by their rows' scales; on the way, peaks = the largest of each tile. */
function scaleLogits(): void {
  let logits = model.logits
  let scales = model.head.scales
  let peak = model.peaks
  const end = peak + ((<usize>(model.vocab >>> 4)) << 2)
  let sums = f32x4.splat(0)
  while (peak < end) {
    const a = f32x4.mul(v128.load(logits), v128.load(scales))
    const b = f32x4.mul(v128.load(logits, 16), v128.load(scales, 16))
    const c = f32x4.mul(v128.load(logits, 32), v128.load(scales, 32))
    const d = f32x4.mul(v128.load(logits, 48), v128.load(scales, 48))
    v128.store(logits, a)
    v128.store(logits, b, 16)
    v128.store(logits, c, 32)
    v128.store(logits, d, 48)
    sums = f32x4.add(sums, f32x4.add(f32x4.add(a, b), f32x4.add(c, d)))
    const four = f32x4.pmax(f32x4.pmax(a, b), f32x4.pmax(c, d))
    const two = f32x4.pmax(four, v128.shuffle<f32>(four, four, 2, 3, 0, 1))
    v128.store32_lane(peak, f32x4.pmax(two, v128.shuffle<f32>(two, two, 1, 0, 3, 2)), 0)
    logits += 64
    scales += 64
    peak += 4
  }
  let last: f32 = -Infinity
  for (let rest = model.vocab & 15; rest > 0; rest--) {
    const logit = load<f32>(logits) * load<f32>(scales)
    store<f32>(logits, logit)
    last = max(last, logit)
    logits += 4
    scales += 4
  }
  if (model.vocab & 15) {
    store<f32>(peak, last)
    // The padding rows after the vocabulary have no say.
    const padded = model.logits + ((<usize>((model.vocab + 15) & ~15)) << 2)
    for (; logits < padded; logits += 4) store<f32>(logits, -Infinity)
  }
  // pmax takes one instruction where max takes eight, but may lose a NaN; a sum does not.
  if (isNaN(sumLanes(sums))) store<f32>(model.peaks, NaN)
}

/** Adds the second plane to the tiles that have a row near the best. */
function refine(tiles: i32, blocks: i32): void {
  const best = model.tileBest
  let top = -f32.MAX_VALUE
  for (let tile = 0; tile < tiles; tile++) {
    const logit = bestOf(tile)
    store<f32>(best + ((<usize>tile) << 2), logit)
    top = max(top, logit)
  }
  let second = model.head.tiles + planeBytes(model.vocab, model.hidden)
  const fineTiles = (model.head.fineRows + 15) >>> 4
  for (let tile = 0; tile < fineTiles; tile++) {
    if (load<f32>(best + ((<usize>tile) << 2)) >= top - REFINED_RANGE) {
      listTerms(termAt(0), 1, 1, second, 1, 0, blocks, model.records, model.logits + ((<usize>tile) << 6), FINE)
      sumTerms(blocks, 1, blocks)
    }
    second += planeBytes(16, model.hidden)
  }
}

/** The largest logit of a tile's rows; the padding rows after the vocabulary have no say. */
function bestOf(tile: i32): f32 {
  const at = (<usize>tile) << 6
  const logits = model.logits + at
  const scales = model.head.scales + at
  const rows = min(model.vocab - (tile << 4), 16)
  let best = f32x4.splat(-f32.MAX_VALUE)
  let row: usize = 0
  for (; row + 4 <= <usize>rows; row += 4) {
    const i = row << 2
    best = f32x4.pmax(best, f32x4.mul(v128.load(logits + i), v128.load(scales + i)))
  }
  let single = maxLanes(best)
  for (; row < <usize>rows; row++)
    single = max(single, load<f32>(logits + (row << 2)) * load<f32>(scales + (row << 2)))
  return single
}
