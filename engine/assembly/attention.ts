/**
 * @module
 * Attention of a chunk over the pages of its sequence. One query row (a token's head) at a time, always page after page
 * from position 0, so that a token's bits do not depend on which others came with it.
 *
 * Both products run on integers: the query becomes i16 under one scale, and so do a page's softmax weights (times the
 * values' scales). i16 is close to exact; what it buys is that an int8 page is used as it lies.
 */
import { keyScalesOf, PAGE_TOKENS, pageOf, remember, valueScalesOf, valuesOf } from './cache.ts'
import { layerAt, model } from './model.ts'
import { project } from './projection.ts'
import { normalise, quantise, recordBytes } from './record.ts'
import { rotate } from './rope.ts'
import { addScaledRows, clear, exp4, maxLanes, scaleRows, sumLanes } from './vector.ts'

/** Largest magnitude of a query's components: headDim · 8191 · 127 stays below 2^31 up to a headDim of 2,064. */
const QUERY_PEAK: f32 = 8191
/** Largest magnitude of a page's weights: 32 · 32767 · 127 < 2^31. */
const SHARE_PEAK: f32 = 32767

/**
 * x += W_o · attention(norm(x)) for `count` tokens that start at `position`.
 */
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
    normalise(
      model.x + at,
      layer.attentionNorm,
      model.normEps,
      hidden,
      model.h + at,
      model.records + <usize>t * recordBytes(hidden),
    )
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
  const group = heads / kvHeads
  for (let t = 0; t < count; t++) {
    const context = model.context + ((<usize>(t * width)) << 2)
    for (let head = 0; head < heads; head++) {
      const at = <usize>head * headBytes
      attend(index, head / group, position + t + 1, model.qkvRows + <usize>t * rowBytes + at, context + at)
    }
    quantise(context, width, model.contextRecords + <usize>t * recordBytes(width), 1)
  }
  project(layer.output, hidden, width, model.contextRecords, model.sum, count)
  for (let t = 0; t < count; t++) {
    const at = (<usize>(t * hidden)) << 2
    addScaledRows(model.x + at, model.sum + at, layer.output.scales, hidden)
  }
}

/** out = Σ softmax(q · k / sqrt(headDim)) v over positions 0 … length - 1; query and out f32 [headDim]. */
function attend(layer: i32, kvHead: i32, length: i32, query: usize, out: usize): void {
  const headDim = model.headDim
  const scale = toShorts(query, headDim, model.query) / sqrt<f32>(<f32>headDim)
  const scores = model.scores
  for (let p = 0; p < length; p += PAGE_TOKENS) {
    score(
      pageOf(layer, kvHead, p),
      model.query,
      scale,
      min(length - p, PAGE_TOKENS),
      scores + ((<usize>p) << 2),
    )
  }
  const total = exponentiate(scores, length)

  clear(out, (<usize>headDim) << 2)
  for (let p = 0; p < length; p += PAGE_TOKENS) {
    gather(pageOf(layer, kvHead, p), scores + ((<usize>p) << 2), min(length - p, PAGE_TOKENS), out)
  }
  const inverse = f32x4.splat(1 / total)
  for (let i: usize = 0; i < (<usize>headDim) << 2; i += 16) {
    v128.store(out + i, f32x4.mul(v128.load(out + i), inverse))
  }
}

/** Quantises `length` floats (a multiple of 8) to i16. @returns their scale */
function toShorts(from: usize, length: i32, to: usize): f32 {
  let top = f32x4.splat(0)
  for (let i: usize = 0; i < (<usize>length) << 2; i += 16)
    top = f32x4.max(top, f32x4.abs(v128.load(from + i)))
  const peak = maxLanes(top)
  const inverse = f32x4.splat(peak > 0 ? QUERY_PEAK / peak : 0)
  for (let i: usize = 0; i < (<usize>length) << 1; i += 16) {
    const low = f32x4.nearest(f32x4.mul(v128.load(from + (i << 1)), inverse))
    const high = f32x4.nearest(f32x4.mul(v128.load(from + (i << 1), 16), inverse))
    v128.store(to + i, i16x8.narrow_i32x4_s(i32x4.trunc_sat_f32x4_s(low), i32x4.trunc_sat_f32x4_s(high)))
  }
  return peak / QUERY_PEAK
}

/** Scores of a page's first `count` tokens; those up to the next multiple of 8 become -inf. */
function score(page: usize, query: usize, scale: f32, count: i32, scores: usize): void {
  const pairs = model.headDim >>> 1
  const keyScales = keyScalesOf(page)
  const scales = f32x4.splat(scale)
  for (let t = 0; t < count; t += 8) {
    let low = i32x4.splat(0)
    let high = low
    let q = query
    let pair = pairs
    do {
      const keys = v128.load(page)
      const x = v128.load32_splat(q)
      low = i32x4.add(low, i32x4.dot_i16x8_s(i16x8.extend_low_i8x16_s(keys), x))
      high = i32x4.add(high, i32x4.dot_i16x8_s(i16x8.extend_high_i8x16_s(keys), x))
      page += 16
      q += 4
    } while (--pair)
    const at = (<usize>t) << 2
    v128.store(
      scores + at,
      f32x4.mul(f32x4.convert_i32x4_s(low), f32x4.mul(v128.load(keyScales + at), scales)),
    )
    v128.store(
      scores + at,
      f32x4.mul(f32x4.convert_i32x4_s(high), f32x4.mul(v128.load(keyScales + at, 16), scales)),
      16,
    )
  }
  for (let t = count; t & 7; t++) store<f32>(scores + ((<usize>t) << 2), -f32.MAX_VALUE)
}

/**
 * scores[i] -> exp(scores[i] - max) over `length` scores and the padding after them, up to a multiple of 32.
 *
 * @returns their sum
 */
function exponentiate(scores: usize, length: i32): f32 {
  const end = scores + ((<usize>((length + 7) & ~7)) << 2)
  let top = v128.load(scores)
  for (let at = scores; at < end; at += 16) top = f32x4.max(top, v128.load(at))
  const peak = f32x4.splat(maxLanes(top))
  let sum = f32x4.splat(0)
  for (let at = scores; at < end; at += 16) {
    const e = exp4(f32x4.sub(v128.load(at), peak))
    v128.store(at, e)
    sum = f32x4.add(sum, e)
  }
  const padded = scores + ((<usize>((length + PAGE_TOKENS - 1) & -PAGE_TOKENS)) << 2)
  clear(end, padded - end)
  return sumLanes(sum)
}

/** out += Σ weight · value over a page, of whose 32 weights the first `count` may differ from 0. */
function gather(page: usize, weights: usize, count: i32, out: usize): void {
  const valueScales = valueScalesOf(page)
  let top = f32x4.splat(0)
  for (let i: usize = 0; i < (<usize>PAGE_TOKENS) << 2; i += 16) {
    // The scale of a token that is not there yet may be anything, even NaN.
    const weight = v128.load(weights + i)
    const w = v128.and(f32x4.mul(weight, v128.load(valueScales + i)), f32x4.gt(weight, f32x4.splat(0)))
    v128.store(weights + i, w)
    top = f32x4.max(top, w)
  }
  const peak = maxLanes(top)
  if (!(peak > 0)) return
  const shares = model.shares
  const inverse = f32x4.splat(SHARE_PEAK / peak)
  for (let i: usize = 0; i < (<usize>PAGE_TOKENS) << 1; i += 16) {
    const low = f32x4.nearest(f32x4.mul(v128.load(weights + (i << 1)), inverse))
    const high = f32x4.nearest(f32x4.mul(v128.load(weights + (i << 1), 16), inverse))
    v128.store(shares + i, i16x8.narrow_i32x4_s(i32x4.trunc_sat_f32x4_s(low), i32x4.trunc_sat_f32x4_s(high)))
  }
  const scale = f32x4.splat(peak / SHARE_PEAK)
  const stride = (<usize>model.headDim) << 1
  const pairs = (count + 1) >>> 1
  let values = valuesOf(page)
  const end = out + (stride << 1)
  while (out < end) {
    let low = i32x4.splat(0)
    let high = low
    let v = values
    let share = shares
    let pair = pairs
    do {
      const x = v128.load32_splat(share)
      const two = v128.load(v)
      low = i32x4.add(low, i32x4.dot_i16x8_s(i16x8.extend_low_i8x16_s(two), x))
      high = i32x4.add(high, i32x4.dot_i16x8_s(i16x8.extend_high_i8x16_s(two), x))
      v += stride
      share += 4
    } while (--pair)
    v128.store(out, f32x4.add(v128.load(out), f32x4.mul(f32x4.convert_i32x4_s(low), scale)))
    v128.store(out, f32x4.add(v128.load(out, 16), f32x4.mul(f32x4.convert_i32x4_s(high), scale)), 16)
    out += 32
    values += 16
  }
}
