/**
 * @module
 * Attention of a chunk over the pages of its sequence. Query rows (a token's heads) that share a key head go two at a
 * time, so that a key is widened once for both; each is computed page after page from position 0, so that its bits do
 * not depend on which others came with it.
 *
 * Both products run on integers: the query becomes i16 under one scale, and so do a page's softmax weights (times the
 * values' scales). i16 is close to exact; what it buys is that an int8 page is used as it lies.
 */
import { keyScalesOf, PAGE_TOKENS, pageOf, remember, valueScalesOf, valuesOf } from './cache.ts'
import { layerAt, model } from './model.ts'
import { project } from './projection.ts'
import { normalise, quantise, recordBytes } from './record.ts'
import { rotate } from './rope.ts'
import { addScaledRows, clear, exp4, maxLanes, rounders, scaleRows, sumLanes, toIntegers } from './vector.ts'

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
  const rowBytes = <usize>(model.heads + 2 * model.kvHeads) * headBytes
  const contextBytes = <usize>model.heads * headBytes
  const total = count * group
  for (let row = 0; row < total; row += 2) {
    const rows = min(2, total - row)
    let length = 0
    for (let i = 0; i < rows; i++) {
      const token = (row + i) / group
      const head = <usize>(kvHead * group + ((row + i) % group)) * headBytes
      length = position + token + 1
      prepare(
        i,
        length,
        model.qkvRows + <usize>token * rowBytes + head,
        model.context + <usize>token * contextBytes + head,
      )
    }
    attend(layer, kvHead, rows, row === 0)
  }
}

// ---- Up to two rows -----------------------------------------------------------------------------------------------

/** Tokens that a row sees; row 1 sees no fewer than row 0. */
let length0: i32 = 0
let length1: i32 = 0
/** What an integer of the row's query is worth, times 1/sqrt(headDim). */
let scale0: f32 = 0
let scale1: f32 = 0
/** Where a row's result goes: f32 [headDim]. */
let out0: usize = 0
let out1: usize = 0

/** Sets row `i` up: its query becomes i16. */
function prepare(i: i32, length: i32, query: usize, out: usize): void {
  const headDim = model.headDim
  const scale = toShorts(query, headDim, queryOf(i)) / sqrt<f32>(<f32>headDim)
  clear(out, (<usize>headDim) << 2)
  if (i === 0) {
    length0 = length
    scale0 = scale
    out0 = out
  } else {
    scale1 = scale
    out1 = out
  }
  length1 = length
}

@inline
function queryOf(row: i32): usize {
  return model.query + ((<usize>(row * model.headDim)) << 1)
}

@inline
function scoresOf(row: i32): usize {
  return model.scores + <usize>row * model.scoreBytes
}

@inline
function sharesOf(row: i32): usize {
  return model.shares + <usize>row * (PAGE_TOKENS * 2)
}

/** out = Σ softmax(q · k / sqrt(headDim)) v of the prepared rows, which are the first to see these pages or not. */
function attend(layer: i32, kvHead: i32, rows: i32, first: bool): void {
  const length = length1
  for (let p = 0; p < length; p += PAGE_TOKENS) {
    const page = pageOf(layer, kvHead, p)
    const count = min(length - p, PAGE_TOKENS)
    if (first && p + PAGE_TOKENS < length) touch(pageOf(layer, kvHead, p + PAGE_TOKENS))
    if (rows === 1) score(1, page, p, count)
    else score(2, page, p, count)
  }
  const padded = (length + PAGE_TOKENS - 1) & -PAGE_TOKENS
  const total0 = exponentiate(scoresOf(0), length0, padded)
  const total1 = rows === 1 ? total0 : exponentiate(scoresOf(1), length1, padded)
  for (let p = 0; p < length; p += PAGE_TOKENS) {
    const page = pageOf(layer, kvHead, p)
    const count = min(length - p, PAGE_TOKENS)
    if (first && p + PAGE_TOKENS < length) touch(valuesOf(pageOf(layer, kvHead, p + PAGE_TOKENS)))
    if (rows === 1) gather(1, page, p, count)
    else gather(2, page, p, count)
  }
  divide(out0, total0)
  if (rows > 1) divide(out1, total1)
}

/** Quantises `length` floats (a multiple of 8) to i16. @returns their scale */
function toShorts(from: usize, length: i32, to: usize): f32 {
  let top = f32x4.splat(0)
  for (let i: usize = 0; i < (<usize>length) << 2; i += 16)
    top = f32x4.pmax(top, f32x4.abs(v128.load(from + i)))
  const peak = maxLanes(top)
  const inverse = f32x4.splat(peak > 0 ? QUERY_PEAK / peak : 0)
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
function score(rows: i32, page: usize, position: i32, count: i32): void {
  const pairs = model.headDim >>> 1
  const one = f32x4.splat(scale0)
  const two = f32x4.splat(scale1)
  let keyScales = keyScalesOf(page)
  let to0 = scoresOf(0) + ((<usize>position) << 2)
  let to1 = scoresOf(1) + ((<usize>position) << 2)
  let run = (count + 7) >>> 3
  do {
    let low0 = i32x4.splat(0)
    let high0 = low0
    let low1 = low0
    let high1 = low0
    let query0 = queryOf(0)
    let query1 = queryOf(1)
    let pair = pairs
    do {
      const low = v128.load8x8_s(page)
      const high = v128.load8x8_s(page, 8)
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
      page += 16
    } while (--pair)
    const low = v128.load(keyScales)
    const high = v128.load(keyScales, 16)
    v128.store(to0, f32x4.mul(f32x4.convert_i32x4_s(low0), f32x4.mul(low, one)))
    v128.store(to0, f32x4.mul(f32x4.convert_i32x4_s(high0), f32x4.mul(high, one)), 16)
    if (rows > 1) {
      v128.store(to1, f32x4.mul(f32x4.convert_i32x4_s(low1), f32x4.mul(low, two)))
      v128.store(to1, f32x4.mul(f32x4.convert_i32x4_s(high1), f32x4.mul(high, two)), 16)
    }
    keyScales += 32
    to0 += 32
    to1 += 32
  } while (--run)
}

/**
 * scores[i] -> exp(scores[i] - max) over `length` scores, and 0 from there up to `padded`, a multiple of 32.
 *
 * @returns their sum
 */
function exponentiate(scores: usize, length: i32, padded: i32): f32 {
  for (let t = length; t & 7; t++) store<f32>(scores + ((<usize>t) << 2), -f32.MAX_VALUE)
  const end = scores + ((<usize>((length + 7) & ~7)) << 2)
  let top = v128.load(scores)
  for (let at = scores; at < end; at += 32) {
    top = f32x4.pmax(top, f32x4.pmax(v128.load(at), v128.load(at, 16)))
  }
  const peak = f32x4.splat(maxLanes(top))
  let sum0 = f32x4.splat(0)
  let sum1 = sum0
  for (let at = scores; at < end; at += 32) {
    const e0 = exp4(f32x4.sub(v128.load(at), peak))
    const e1 = exp4(f32x4.sub(v128.load(at, 16), peak))
    v128.store(at, e0)
    v128.store(at, e1, 16)
    sum0 = f32x4.add(sum0, e0)
    sum1 = f32x4.add(sum1, e1)
  }
  clear(end, scores + ((<usize>padded) << 2) - end)
  return sumLanes(f32x4.add(sum0, sum1))
}

/** out += Σ weight · value over a page that starts at `position`, of whose tokens the first `count` may have a weight. */
@inline
function gather(rows: i32, page: usize, position: i32, count: i32): void {
  const valueScales = valueScalesOf(page)
  const one = f32x4.splat(share(scoresOf(0) + ((<usize>position) << 2), valueScales, sharesOf(0)))
  const two =
    rows > 1 ? f32x4.splat(share(scoresOf(1) + ((<usize>position) << 2), valueScales, sharesOf(1))) : one
  const stride = (<usize>model.headDim) << 1
  const pairs = (count + 1) >>> 1
  let values = valuesOf(page)
  let to0 = out0
  let to1 = out1
  const end = to0 + (stride << 1)
  do {
    let low0 = i32x4.splat(0)
    let high0 = low0
    let low1 = low0
    let high1 = low0
    let value = values
    let shares = sharesOf(0)
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
      value += stride
      shares += 4
    } while (--pair)
    v128.store(to0, f32x4.add(v128.load(to0), f32x4.mul(f32x4.convert_i32x4_s(low0), one)))
    v128.store(to0, f32x4.add(v128.load(to0, 16), f32x4.mul(f32x4.convert_i32x4_s(high0), one)), 16)
    if (rows > 1) {
      v128.store(to1, f32x4.add(v128.load(to1), f32x4.mul(f32x4.convert_i32x4_s(low1), two)))
      v128.store(to1, f32x4.add(v128.load(to1, 16), f32x4.mul(f32x4.convert_i32x4_s(high1), two)), 16)
    }
    to0 += 32
    to1 += 32
    values += 16
  } while (to0 < end)
}

/**
 * A page's weights times its values' scales, as i16.
 *
 * @returns what one of these is worth
 */
function share(weights: usize, valueScales: usize, shares: usize): f32 {
  const zero = f32x4.splat(0)
  let top = zero
  for (let i: usize = 0; i < (<usize>PAGE_TOKENS) << 2; i += 16) {
    // The scale of a token that is not there yet may be anything, even NaN.
    const weight = v128.load(weights + i)
    const product = v128.and(f32x4.mul(weight, v128.load(valueScales + i)), f32x4.gt(weight, zero))
    v128.store(weights + i, product)
    top = f32x4.pmax(top, product)
  }
  const peak = maxLanes(top)
  const inverse = f32x4.splat(peak > 0 ? SHARE_PEAK / peak : 0)
  const rounder = rounders()
  for (let i: usize = 0; i < (<usize>PAGE_TOKENS) << 1; i += 16) {
    const low = toIntegers(v128.load(weights + (i << 1)), inverse, rounder)
    const high = toIntegers(v128.load(weights + (i << 1), 16), inverse, rounder)
    v128.store(shares + i, i16x8.narrow_i32x4_s(low, high))
  }
  return peak / SHARE_PEAK
}

/** values /= total, over a head. */
function divide(values: usize, total: f32): void {
  const inverse = f32x4.splat(1 / total)
  for (let i: usize = 0; i < (<usize>model.headDim) << 2; i += 16) {
    v128.store(values + i, f32x4.mul(v128.load(values + i), inverse))
  }
}

/** What {@link touch} read, kept so that no compiler may leave the reading out. */
let touched: i32 = 0

/**
 * Reads a byte of every cache line of a page's keys or values, one page ahead of their use. WebAssembly has no prefetch,
 * and the runs of a page are too short for the machine's own.
 */
function touch(run: usize): void {
  let all = 0
  const end = run + <usize>(PAGE_TOKENS * model.headDim)
  do {
    all |= load<u8>(run)
    run += 64
  } while (run < end)
  touched = all
}
