/**
 * @module
 * Keys and values, int8 with one scale a head and token, in pages of 32 tokens. A page of one layer and key head is
 *
 *     keys    i8 [4][headDim / 2][8 tokens][2], f32 scales [32]      eight tokens to a run, their components in pairs
 *     values  i8 [16][headDim][2 tokens], f32 scales [32]            two tokens to a run
 *
 * so that attention multiplies pairs of 16-bit lanes without a sum across lanes: a lane is a token for the keys and a
 * component for the values. The cache is [layers][kvHeads][keys, values][pages]: neighbouring pages of a sequence lie
 * end to end, a stream that the machine prefetches.
 */
import { model } from './model.ts'
import { largerMagnitudes, maxLanes, scaleTo } from './vector.ts'

export const PAGE_TOKENS = 32

/** Bytes of one layer's and key head's keys, or values, of a page. */
@inline
function runBytes(): usize {
  return <usize>(PAGE_TOKENS * (model.headDim + 4))
}

/** Keys of a layer and key head in the page of a position. */
@inline
export function keysOf(layer: i32, kvHead: i32, position: i32): usize {
  const page = load<i32>(model.pages + ((<usize>(position >>> 5)) << 2))
  return model.cache + <usize>((layer * model.kvHeads + kvHead) * 2 * model.cachePages + page) * runBytes()
}

/** The values that belong to {@link keysOf}. */
@inline
export function valuesOf(keys: usize): usize {
  return keys + <usize>model.cachePages * runBytes()
}

/** Scales of a run of keys or values: f32 [PAGE_TOKENS]. */
@inline
export function scalesOf(run: usize): usize {
  return run + <usize>(PAGE_TOKENS * model.headDim)
}

/** Stores the key and the value (f32 [headDim] each) of one head at a position. */
export function remember(layer: i32, kvHead: i32, position: i32, key: usize, value: usize): void {
  const token = <usize>(position & (PAGE_TOKENS - 1))
  const headDim = <usize>model.headDim

  const keys = keysOf(layer, kvHead, position)
  const keyPeak = peak(key)
  const keyInverse = scaleTo(127, keyPeak)
  const keyCodes = keys + (token >>> 3) * (headDim << 3) + ((token & 7) << 1)
  for (let d: usize = 0; d < headDim; d++) {
    store<i8>(keyCodes + ((d >>> 1) << 4) + (d & 1), code(key + (d << 2), keyInverse))
  }
  store<f32>(scalesOf(keys) + (token << 2), keyPeak / 127)

  const values = valuesOf(keys)
  const valuePeak = peak(value)
  const valueInverse = scaleTo(127, valuePeak)
  const valueCodes = values + (token >>> 1) * (headDim << 1) + (token & 1)
  for (let d: usize = 0; d < headDim; d++) {
    store<i8>(valueCodes + (d << 1), code(value + (d << 2), valueInverse))
  }
  store<f32>(scalesOf(values) + (token << 2), valuePeak / 127)
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
