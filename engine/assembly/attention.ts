/**
 * @module
 * Attention of a chunk over the pages of its sequence. Query rows (a token's heads) that share a key head go three
 * at a time, so that a key is widened once for all; each is computed page after page from position 0, so that its bits do
 * not depend on which others came with it.
 *
 * Both products run on integers: the query becomes i16 under one scale, and so do a page's softmax weights (times the
 * values' scales). i16 is close to exact; what it buys is that an int8 page is used as it lies.
 */
import { keysOf, PAGE_TOKENS, remember, scalesOf, valuesOf } from './cache.ts'
import { layerAt, model } from './model.ts'
import { project } from './projection.ts'
import { normalise, quantise, recordBytes } from './record.ts'
import { rotate } from './rope.ts'
import {
  addScaledRows,
  clear,
  exp4,
  largerMagnitudes,
  maxLanes,
  rounders,
  scaleRows,
  scaleTo,
  sumLanes,
  toIntegers,
} from './vector.ts'

/** Largest magnitude of a query's components: headDim · 8191 · 127 stays below 2^31 up to a headDim of 2,064. */
const QUERY_PEAK: f32 = 8191
/** Largest magnitude of a page's weights: 32 · 32767 · 127 < 2^31. */
const SHARE_PEAK: f32 = 32767

/** x += W_o · attention(norm(x)) for `count` tokens that start at `position`. */
export function attention(index: i32, count: i32, position: i32): void {
  const layer = layerAt(index)
  const hidden = model.hidden
  const heads = model.heads
  const kvHeads = model.kvHeads
  const headBytes = (<usize>model.headDim) << 2
  const rows = (heads + 2 * kvHeads) * model.headDim
  const rowBytes = (<usize>rows) << 2
  const width = heads * model.headDim

  for (let t = 0; t < count; t++) {
    const at = (<usize>(t * hidden)) << 2
    const records = model.records + <usize>t * recordBytes(hidden)
    normalise(model.x + at, layer.attentionNorm, model.normEps, hidden, model.h + at, records)
  }
  project(layer.qkv, rows, hidden, model.records, model.qkvRows, count)
  for (let t = 0; t < count; t++) {
    const queries = model.qkvRows + <usize>t * rowBytes
    scaleRows(queries, queries, layer.qkv.scales, rows)
    rotate(queries, heads + kvHeads, model.angles + <usize>t * headBytes)
    const keys = queries + <usize>heads * headBytes
    const values = keys + <usize>kvHeads * headBytes
    for (let head = 0; head < kvHeads; head++) {
      const at = <usize>head * headBytes
      remember(index, head, position + t, keys + at, values + at)
    }
  }
  for (let head = 0; head < kvHeads; head++) attendHead(index, head, count, position)
  for (let t = 0; t < count; t++) {
    const context = model.context + ((<usize>(t * width)) << 2)
    quantise(context, width, model.contextRecords + <usize>t * recordBytes(width), 1)
  }
  project(layer.output, hidden, width, model.contextRecords, model.sum, count)
  for (let t = 0; t < count; t++) {
    const at = (<usize>(t * hidden)) << 2
    addScaledRows(model.x + at, model.sum + at, layer.output.scales, hidden)
  }
}

/** All query rows of a key head: token after token, the heads of its group within one. */
function attendHead(layer: i32, kvHead: i32, count: i32, position: i32): void {
  const headBytes = (<usize>model.headDim) << 2
  const group = model.heads / model.kvHeads
  const queryBytes = <usize>(model.heads + 2 * model.kvHeads) * headBytes
  const contextBytes = <usize>model.heads * headBytes
  const total = count * group
  for (let row = 0; row < total; row += 3) {
    const rows = min(3, total - row)
    for (let i = 0; i < rows; i++) {
      const token = (row + i) / group
      const head = <usize>(kvHead * group + ((row + i) % group)) * headBytes
      const query = model.qkvRows + <usize>token * queryBytes + head
      prepare(i, query, position + token + 1, model.context + <usize>token * contextBytes + head)
    }
    attend(layer, kvHead, rows)
  }
}

// ---- Up to three rows ---------------------------------------------------------------------------------------------

@unmanaged
class Row {
  /** Tokens that it sees; no fewer than the row before it. */
  length: i32
  /** i16 [headDim], and what one of these is worth, times 1/sqrt(headDim). */
  query: usize
  scale: f32
  /** f32 [contextTokens]: first q · k, then the softmax weights. */
  scores: usize
  /** The largest score, and the sum of the weights e^(score - peak). */
  peak: f32
  total: f32
  /** i16 [PAGE_TOKENS]: the weights of a page, times its values' scales; and what one of these is worth. */
  shares: usize
  shareScale: f32
  /** f32 [headDim]: Σ weight · value. */
  out: usize
}

const ROW_BYTES = offsetof<Row>()
const ROWS = memory.data(108)

@inline
function rowAt(i: i32): Row {
  return changetype<Row>(ROWS + <usize>i * ROW_BYTES)
}

function prepare(i: i32, query: usize, length: i32, out: usize): void {
  const row = rowAt(i)
  row.length = length
  row.query = model.query + ((<usize>(i * model.headDim)) << 1)
  row.scale = toShorts(query, model.headDim, row.query) / sqrt<f32>(<f32>model.headDim)
  row.scores = model.scores + <usize>i * model.scoreBytes
  row.shares = model.shares + <usize>i * (PAGE_TOKENS * 2)
  row.out = out
}

/** out = Σ softmax(q · k / sqrt(headDim)) v of the prepared rows. */
function attend(layer: i32, kvHead: i32, rows: i32): void {
  const length = rowAt(rows - 1).length
  for (let p = 0; p < length; p += PAGE_TOKENS) {
    const keys = keysOf(layer, kvHead, p)
    const count = min(length - p, PAGE_TOKENS)
    if (rows === 3) score(3, keys, p, count)
    else if (rows === 2) score(2, keys, p, count)
    else score(1, keys, p, count)
  }
  for (let i = 0; i < rows; i++) startWeighing(rowAt(i))
  for (let p = 0; p < length; p += PAGE_TOKENS) {
    const scales = scalesOf(keysOf(layer, kvHead, p)) + 16
    for (let i = 0; i < rows; i++) weigh(rowAt(i), p, scales)
    const values = valuesOf(layer, kvHead, p)
    const count = min(length - p, PAGE_TOKENS)
    if (rows === 3) gather(3, values, count)
    else if (rows === 2) gather(2, values, count)
    else gather(1, values, count)
  }
  for (let i = 0; i < rows; i++) divide(rowAt(i))
}

/** Quantises `length` floats (a multiple of 8) to i16. @returns their scale */
function toShorts(from: usize, length: i32, to: usize): f32 {
  let top = f32x4.splat(0)
  for (let i: usize = 0; i < (<usize>length) << 2; i += 16)
    top = largerMagnitudes(top, f32x4.abs(v128.load(from + i)))
  const peak = maxLanes(top)
  const inverse = f32x4.splat(scaleTo(QUERY_PEAK, peak))
  const rounder = rounders()
  for (let i: usize = 0; i < (<usize>length) << 1; i += 16) {
    const low = toIntegers(v128.load(from + (i << 1)), inverse, rounder)
    const high = toIntegers(v128.load(from + (i << 1), 16), inverse, rounder)
    v128.store(to + i, i16x8.narrow_i32x4_s(low, high))
  }
  return peak / QUERY_PEAK
}

/** Scores of the `count` tokens of a page that starts at `position`, and of those up to the next multiple of 8. */
@inline
function score(rows: i32, keys: usize, position: i32, count: i32): void {
  const row0 = rowAt(0)
  const row1 = rowAt(1)
  const row2 = rowAt(2)
  const pairs = model.headDim >>> 1
  let keyScales = scalesOf(keys)
  let at = (<usize>position) << 2
  let run = (count + 7) >>> 3
  do {
    let low0 = i32x4.splat(0)
    let high0 = low0
    let low1 = low0
    let high1 = low0
    let low2 = low0
    let high2 = low0
    let query0 = row0.query
    let query1 = row1.query
    let query2 = row2.query
    let key = keys
    let pair = pairs
    do {
      const low = v128.load8x8_s(key)
      const high = v128.load8x8_s(key, 8)
      let q = v128.load32_splat(query0)
      low0 = i32x4.add(low0, i32x4.dot_i16x8_s(low, q))
      high0 = i32x4.add(high0, i32x4.dot_i16x8_s(high, q))
      query0 += 4
      if (rows > 1) {
        q = v128.load32_splat(query1)
        low1 = i32x4.add(low1, i32x4.dot_i16x8_s(low, q))
        high1 = i32x4.add(high1, i32x4.dot_i16x8_s(high, q))
        query1 += 4
      }
      if (rows > 2) {
        q = v128.load32_splat(query2)
        low2 = i32x4.add(low2, i32x4.dot_i16x8_s(low, q))
        high2 = i32x4.add(high2, i32x4.dot_i16x8_s(high, q))
        query2 += 4
      }
      key += PAGE_TOKENS * 2
    } while (--pair)
    storeScores(row0, at, low0, high0, keyScales)
    if (rows > 1) storeScores(row1, at, low1, high1, keyScales)
    if (rows > 2) storeScores(row2, at, low2, high2, keyScales)
    keys += 16
    keyScales += 64
    at += 32
  } while (--run)
}

@inline
function storeScores(row: Row, at: usize, low: v128, high: v128, keyScales: usize): void {
  const scale = f32x4.splat(row.scale)
  const to = row.scores + at
  v128.store(to, f32x4.mul(f32x4.convert_i32x4_s(low), f32x4.mul(v128.load(keyScales), scale)))
  v128.store(to, f32x4.mul(f32x4.convert_i32x4_s(high), f32x4.mul(v128.load(keyScales, 32), scale)), 16)
}

/**
 * Hides the scores after the row's own, up to the end of its last page, and finds the largest. Nothing is below what hides
 * them: where all of the row's own scores overflow, its weights become NaN and never another sequence's memory.
 */
function startWeighing(row: Row): void {
  for (let t = row.length; t & (PAGE_TOKENS - 1); t++)
    store<f32>(row.scores + ((<usize>t) << 2), f32.NEGATIVE_INFINITY)
  const end = row.scores + ((<usize>row.length) << 2)
  let top = v128.load(row.scores)
  for (let at = row.scores; at < end; at += 16) top = f32x4.pmax(top, v128.load(at))
  row.peak = maxLanes(top)
  row.total = 0
  clear(row.out, (<usize>model.headDim) << 2)
}

/** Turns the scores of a page into weights, adds these up, and makes the page's shares of them. */
function weigh(row: Row, position: i32, valueScales: usize): void {
  const shares = row.shares
  if (position >= row.length) {
    clear(shares, PAGE_TOKENS * 2)
    row.shareScale = 0
    return
  }
  const scores = row.scores + ((<usize>position) << 2)
  const peak = f32x4.splat(row.peak)
  const zero = f32x4.splat(0)
  let sum = zero
  let top = zero
  for (let i: usize = 0; i < (<usize>PAGE_TOKENS) << 2; i += 16) {
    const weight = exp4(f32x4.sub(v128.load(scores + i), peak))
    sum = f32x4.add(sum, weight)
    // The scale of a token that is not there yet may be anything, even NaN. A weight that is NaN is not 0.
    const share = v128.and(f32x4.mul(weight, v128.load(valueScales + (i << 1))), f32x4.ne(weight, zero))
    v128.store(scores + i, share)
    top = largerMagnitudes(top, share)
  }
  row.total += sumLanes(sum)
  const largest = maxLanes(top)
  const inverse = f32x4.splat(scaleTo(SHARE_PEAK, largest))
  const rounder = rounders()
  for (let i: usize = 0; i < (<usize>PAGE_TOKENS) << 1; i += 16) {
    const low = toIntegers(v128.load(scores + (i << 1)), inverse, rounder)
    const high = toIntegers(v128.load(scores + (i << 1), 16), inverse, rounder)
    v128.store(shares + i, i16x8.narrow_i32x4_s(low, high))
  }
  row.shareScale = largest / SHARE_PEAK
}

/** out += Σ share · value over a page, of whose tokens the first `count` may have a share. */
@inline
function gather(rows: i32, values: usize, count: i32): void {
  const row0 = rowAt(0)
  const row1 = rowAt(1)
  const row2 = rowAt(2)
  const stride = (<usize>model.headDim) << 1
  const pairs = (count + 1) >>> 1
  for (let at: usize = 0; at < stride << 1; at += 32) {
    let low0 = i32x4.splat(0)
    let high0 = low0
    let low1 = low0
    let high1 = low0
    let low2 = low0
    let high2 = low0
    let shares = row0.shares
    let value = values
    let pair = pairs
    do {
      const low = v128.load8x8_s(value)
      const high = v128.load8x8_s(value, 8)
      let w = v128.load32_splat(shares)
      low0 = i32x4.add(low0, i32x4.dot_i16x8_s(low, w))
      high0 = i32x4.add(high0, i32x4.dot_i16x8_s(high, w))
      if (rows > 1) {
        w = v128.load32_splat(shares, PAGE_TOKENS * 2)
        low1 = i32x4.add(low1, i32x4.dot_i16x8_s(low, w))
        high1 = i32x4.add(high1, i32x4.dot_i16x8_s(high, w))
      }
      if (rows > 2) {
        w = v128.load32_splat(shares, PAGE_TOKENS * 4)
        low2 = i32x4.add(low2, i32x4.dot_i16x8_s(low, w))
        high2 = i32x4.add(high2, i32x4.dot_i16x8_s(high, w))
      }
      value += stride
      shares += 4
    } while (--pair)
    addGathered(row0, at, low0, high0)
    if (rows > 1) addGathered(row1, at, low1, high1)
    if (rows > 2) addGathered(row2, at, low2, high2)
    values += 16
  }
}

@inline
function addGathered(row: Row, at: usize, low: v128, high: v128): void {
  const scale = f32x4.splat(row.shareScale)
  const to = row.out + at
  v128.store(to, f32x4.add(v128.load(to), f32x4.mul(f32x4.convert_i32x4_s(low), scale)))
  v128.store(to, f32x4.add(v128.load(to, 16), f32x4.mul(f32x4.convert_i32x4_s(high), scale)), 16)
}

/** out /= total. */
function divide(row: Row): void {
  const inverse = f32x4.splat(1 / row.total)
  const end = row.out + ((<usize>model.headDim) << 2)
  for (let at = row.out; at < end; at += 16) v128.store(at, f32x4.mul(v128.load(at), inverse))
}
