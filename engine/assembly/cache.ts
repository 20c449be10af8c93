/**
 * @module
 * Keys and values, int8 with one scale a head and token, in pages of 32 tokens. A page of one layer and key head is
 *
 *     keys    i8 [headDim / 2][32 tokens][2], f32 scales [8][keys, values][4 tokens]      components in pairs
 *     values  i8 [16][headDim][2 tokens]                                                  tokens in pairs
 *
 * so that attention multiplies pairs of 16-bit lanes without a sum across lanes: a lane is a token for the keys and a
 * component for the values. The cache is [layers][kvHeads][keys, values][pages]: neighbouring pages of a sequence lie
 * end to end, a stream that the machine prefetches. What it does not prefetch in time is fetched by several loads at
 * once: 8 tokens' keys, or 8 components' values, touch most lines of a page. The values' scales come with the keys',
 * since whoever weighs a page has nothing else to do until they are there.
 */
import { model } from './model.ts'
import { largerMagnitudes, maxLanes, scaleTo } from './vector.ts'

export const PAGE_TOKENS = 32

/** Where the keys of a layer and key head begin. */
@inline
function headAt(layer: i32, kvHead: i32): usize {
  const pages = <usize>((layer * model.kvHeads + kvHead) * model.cachePages)
  return model.cache + pages * (keyBytes() + valueBytes())
}

/** Bytes of a page's keys and all its scales. */
@inline
function keyBytes(): usize {
  return <usize>(PAGE_TOKENS * (model.headDim + 8))
}

@inline
function valueBytes(): usize {
  return <usize>(PAGE_TOKENS * model.headDim)
}

@inline
function pageOf(position: i32): usize {
  return load<u32>(model.pages + ((<usize>(position >>> 5)) << 2))
}

/** Keys of a layer and key head in the page of a position. */
@inline
export function keysOf(layer: i32, kvHead: i32, position: i32): usize {
  return headAt(layer, kvHead) + pageOf(position) * keyBytes()
}

/** Scales of a page's keys, those of four tokens in every 32 bytes; from byte 16 on, of its values. */
@inline
export function scalesOf(keys: usize): usize {
  return keys + <usize>(PAGE_TOKENS * model.headDim)
}

/** The values that belong to {@link keysOf}. */
@inline
export function valuesOf(layer: i32, kvHead: i32, position: i32): usize {
  return headAt(layer, kvHead) + <usize>model.cachePages * keyBytes() + pageOf(position) * valueBytes()
}

/** Stores the key and the value (f32 [headDim] each) of one head at a position. */
export function remember(layer: i32, kvHead: i32, position: i32, key: usize, value: usize): void {
  const token = <usize>(position & (PAGE_TOKENS - 1))
  const headDim = <usize>model.headDim

  const keys = keysOf(layer, kvHead, position)
  const keyPeak = peak(key)
  const keyInverse = scaleTo(127, keyPeak)
  const keyCodes = keys + (token << 1)
  for (let d: usize = 0; d < headDim; d++) {
    store<i8>(keyCodes + (d >>> 1) * (PAGE_TOKENS * 2) + (d & 1), code(key + (d << 2), keyInverse))
  }
  const scales = scalesOf(keys) + ((token >>> 2) << 5) + ((token & 3) << 2)
  store<f32>(scales, keyPeak / 127)

  const values = valuesOf(layer, kvHead, position)
  const valuePeak = peak(value)
  const valueInverse = scaleTo(127, valuePeak)
  const valueCodes = values + (token >>> 1) * (headDim << 1) + (token & 1)
  for (let d: usize = 0; d < headDim; d++) {
    store<i8>(valueCodes + (d << 1), code(value + (d << 2), valueInverse))
  }
  store<f32>(scales, valuePeak / 127, 16)
}

@inline
function code(at: usize, inverse: f32): i8 {
  return <i8>(<i32>nearest<f32>(load<f32>(at) * inverse))
}

function peak(head: usize): f32 {
  let top = f32x4.splat(0)
  for (let i: usize = 0; i < (<usize>model.headDim) << 2; i += 16)
    top = largerMagnitudes(top, f32x4.abs(v128.load(head + i)))
  return maxLanes(top)
}
