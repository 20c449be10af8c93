/**
 * @module
 * Keys and values, int8 with one scale a head and token, in pages of 32 tokens. A page holds all layers; one layer and
 * key head of it is
 *
 *     keys    i8 [4][headDim / 2][8 tokens][2]      eight tokens to a run, their components in pairs
 *     values  i8 [16][headDim][2 tokens]            two tokens to a run
 *     scales  f32 [2][32]                           of the keys, of the values
 *
 * so that attention multiplies pairs of 16-bit lanes without a sum across lanes: a lane is a token for the keys and a
 * component for the values.
 */
import { model } from './model.ts'
import { maxLanes } from './vector.ts'

export const PAGE_TOKENS = 32

/** Bytes of one layer and key head of a page. */
@inline
export function headBytes(): usize {
  return <usize>(2 * PAGE_TOKENS * (model.headDim + 4))
}

/** The part of a page that holds a layer and key head. */
@inline
export function pageOf(layer: i32, kvHead: i32, position: i32): usize {
  const page = load<usize>(model.pages + ((<usize>(position >>> 5)) << 2))
  return page + <usize>(layer * model.kvHeads + kvHead) * headBytes()
}

@inline
export function valuesOf(page: usize): usize {
  return page + <usize>(PAGE_TOKENS * model.headDim)
}

@inline
export function keyScalesOf(page: usize): usize {
  return page + <usize>(2 * PAGE_TOKENS * model.headDim)
}

@inline
export function valueScalesOf(page: usize): usize {
  return keyScalesOf(page) + ((<usize>PAGE_TOKENS) << 2)
}

/** Stores the key and the value (f32 [headDim] each) of one head at a position. */
export function remember(layer: i32, kvHead: i32, position: i32, key: usize, value: usize): void {
  const page = pageOf(layer, kvHead, position)
  const token = <usize>(position & (PAGE_TOKENS - 1))
  const headDim = <usize>model.headDim

  const keyPeak = peak(key)
  const keyInverse: f32 = keyPeak > 0 ? 127 / keyPeak : 0
  const keys = page + (token >>> 3) * (headDim << 3) + ((token & 7) << 1)
  for (let d: usize = 0; d < headDim; d++) {
    store<i8>(keys + ((d >>> 1) << 4) + (d & 1), code(key + (d << 2), keyInverse))
  }
  store<f32>(keyScalesOf(page) + (token << 2), keyPeak / 127)

  const valuePeak = peak(value)
  const valueInverse: f32 = valuePeak > 0 ? 127 / valuePeak : 0
  const values = valuesOf(page) + (token >>> 1) * (headDim << 1) + (token & 1)
  for (let d: usize = 0; d < headDim; d++) store<i8>(values + (d << 1), code(value + (d << 2), valueInverse))
  store<f32>(valueScalesOf(page) + (token << 2), valuePeak / 127)
}

@inline
function code(at: usize, inverse: f32): i8 {
  return <i8>(<i32>nearest<f32>(load<f32>(at) * inverse))
}

function peak(head: usize): f32 {
  let top = f32x4.splat(0)
  for (let i: usize = 0; i < (<usize>model.headDim) << 2; i += 16)
    top = f32x4.pmax(top, f32x4.abs(v128.load(head + i)))
  return maxLanes(top)
}
