/**
 * @module
 * Float matrix → 4-bit planes in the pack's grid, w = R · s · (8q - z): one scale R per row (float32), and per block of
 * 32 inputs a scale s and a zero point z (one byte each) under which 32 codes q of 4 bits stand. The search below is
 * small, deterministic and minimises the squared error. A source that already lies on such a grid (int4, Q4_0, Q4_1) is
 * found again up to the rounding of s and z. In reading order: a matrix, a row, a block.
 */
import { SparsedgeError } from '@sparsedge/engine/errors'
import type { FloatTensor } from '@sparsedge/engine/model/weights'
import {
  BLOCK,
  FINE_PLANE_SCALE,
  type Plane,
  planes,
  type QuantisedLayout,
} from '@sparsedge/engine/pack/layout'

export interface QuantisedMatrix {
  readonly layout: QuantisedLayout
  readonly rows: number
  readonly cols: number
  /** R, [rows]. */
  readonly rowScales: Float32Array
  /** One plane for `q4`, two for `q8`. */
  readonly planes: readonly Plane[]
  /** How many rows, from the first on, the second plane has; absent: all. */
  readonly fineRows?: number
  /** ‖dequantised - source‖ / ‖source‖; 0 for a source of zeros. */
  readonly relativeError: number
}

/** Codes are 0 to 15. */
const TOP_CODE = 15
const TOP_BYTE = 255
/**
 * The second plane spans one step of the first with 15 steps of its own instead of 16, so its scales are up to 16/15
 * larger; this bound keeps them within a byte.
 */
const TOP_SCALE_UNDER_SECOND_PLANE = 239
/**
 * How many steps the range of a block may count. Below 15: a source on a coarser grid that does not use all its codes
 * (1 to 7 steps are found through their multiples). Above 15: the outermost values are clipped so that the others win.
 */
const STEP_COUNTS = [15, 14, 13, 12, 11, 10, 9, 8, 16, 17, 18]

/**
 * Quantises a matrix.
 *
 * @param name for the error message
 * @param tensor [rows, cols], cols a multiple of 32
 * @param fineRows how many rows get the second plane of `q8`, a multiple of 16; the others are as in `q4`
 * @throws SparsedgeError `checkpoint_malformed` for a weight that is NaN or infinite, `checkpoint_unsupported` for a
 * number of columns that is no multiple of 32
 */
export function quantise(
  name: string,
  tensor: FloatTensor,
  layout: QuantisedLayout,
  fineRows = Number.POSITIVE_INFINITY,
): QuantisedMatrix {
  const [rows, cols] = tensor.shape
  if (cols % BLOCK !== 0) {
    throw new SparsedgeError(
      'checkpoint_unsupported',
      `tensor ${name} has ${cols} columns; only multiples of ${BLOCK} can be packed`,
    )
  }
  checkFinite(name, tensor)
  const rowScales = new Float32Array(rows)
  const coarse = emptyPlane(rows, cols)
  const fine = planes(layout) === 2 ? emptyPlane(Math.min(rows, fineRows), cols) : undefined
  const rest = new Float32Array(cols)
  let error = 0
  let norm = 0
  for (let row = 0; row < rows; row++) {
    const weights = tensor.data.subarray(row * cols, (row + 1) * cols)
    const refined = row < fineRows ? fine : undefined
    // A first plane whose rest is stored too must not clip: the second would have to span the clipped part.
    fitRow(weights, refined === undefined)
    rowScales[row] = chooseRowScale(weights, refined !== undefined)
    encodeRow(weights, rowScales[row], coarse, row, rest)
    if (refined) {
      const residual = rest.slice()
      fitRow(residual, true)
      encodeRow(residual, rowScales[row] * FINE_PLANE_SCALE, refined, row, rest)
    }
    for (let col = 0; col < cols; col++) {
      error += rest[col] * rest[col]
      norm += weights[col] * weights[col]
    }
  }
  const relativeError = norm === 0 ? 0 : Math.sqrt(error / norm)
  return {
    layout,
    rows,
    cols,
    rowScales,
    planes: fine ? [coarse, fine] : [coarse],
    ...(fine && fineRows < rows && { fineRows }),
    relativeError,
  }
}

/** @throws SparsedgeError `checkpoint_malformed`, naming the tensor and the place, for a value that is NaN or infinite */
export function checkFinite(name: string, { data, shape }: FloatTensor): void {
  for (let i = 0; i < data.length; i++) {
    if (Number.isFinite(data[i])) continue
    const cols = shape[1] ?? 1
    const place = shape.length === 1 ? `[${i}]` : `[${Math.floor(i / cols)}, ${i % cols}]`
    throw new SparsedgeError(
      'checkpoint_malformed',
      `tensor ${name} is ${data[i]} at ${place}; a checkpoint with such weights cannot be served`,
    )
  }
}

function emptyPlane(rows: number, cols: number): Plane {
  const blocks = cols / BLOCK
  return {
    codes: new Uint8Array(rows * cols),
    scales: new Uint8Array(rows * blocks),
    zeros: new Uint8Array(rows * blocks),
  }
}

// ---- A row ------------------------------------------------------------------------------------------------------

/** The best unrounded grid of each block of the row at hand: values low, low + step, …, low + 15 step. Step 0: zeros. */
let steps = new Float64Array(0)
let lows = new Float64Array(0)

/**
 * Finds every block's best grid before scales and zero points are rounded to bytes: fills {@link steps}, {@link lows}.
 * The one with the least error, or, where clipping is not allowed, the one that just spans the block.
 */
function fitRow(weights: Float32Array, mayClip: boolean): void {
  const blocks = weights.length / BLOCK
  if (steps.length < blocks) {
    steps = new Float64Array(blocks)
    lows = new Float64Array(blocks)
  }
  for (let block = 0; block < blocks; block++) fitBlock(weights, block, mayClip)
}

/**
 * R: the smallest that lets the row's largest step fit in a byte, or the power of two below which that step counts 128
 * to 255 units, under which scales that came as bfloat16 (8 significant bits) stay exact. The one with the smaller error.
 */
function chooseRowScale(weights: Float32Array, hasSecondPlane: boolean): number {
  const blocks = weights.length / BLOCK
  let largest = 0
  for (let block = 0; block < blocks; block++) largest = Math.max(largest, steps[block])
  if (largest === 0) return 0
  if (hasSecondPlane) return Math.fround(largest / (8 * TOP_SCALE_UNDER_SECOND_PLANE))
  const tight = Math.fround(largest / (8 * TOP_BYTE))
  const binary = 2 ** (Math.floor(Math.log2(largest)) - 10)
  return rowError(weights, binary) < rowError(weights, tight) ? binary : tight
}

function rowError(weights: Float32Array, rowScale: number): number {
  let error = 0
  for (let block = 0; block < weights.length / BLOCK; block++) {
    roundBlock(weights, block, rowScale)
    error += rounded.error
  }
  return error
}

/** Writes the row's codes, scales and zero points into the plane, and what they leave of the weights into `rest`. */
function encodeRow(
  weights: Float32Array,
  rowScale: number,
  plane: Plane,
  row: number,
  rest: Float32Array,
): void {
  const blocks = weights.length / BLOCK
  for (let block = 0; block < blocks; block++) {
    roundBlock(weights, block, rowScale)
    const { scale, zero } = rounded
    plane.scales[row * blocks + block] = scale
    plane.zeros[row * blocks + block] = zero
    const unit = rowScale * scale
    for (let col = block * BLOCK; col < (block + 1) * BLOCK; col++) {
      const q = unit === 0 ? 0 : code(weights[col], -unit * zero, 1 / (8 * unit))
      plane.codes[row * weights.length + col] = q
      rest[col] = weights[col] - unit * (8 * q - zero)
    }
  }
}

// ---- A block ----------------------------------------------------------------------------------------------------

/** Searches the block's best grid with real-valued step and low end. */
function fitBlock(weights: Float32Array, block: number, mayClip: boolean): void {
  const at = block * BLOCK
  let min = weights[at]
  let max = min
  for (let i = at + 1; i < at + BLOCK; i++) {
    min = Math.min(min, weights[i])
    max = Math.max(max, weights[i])
  }
  steps[block] = 0
  lows[block] = 0
  if (min === 0 && max === 0) return
  // A zero point is never negative, so a grid starts at or below zero.
  min = Math.min(min, 0)
  let best = Number.POSITIVE_INFINITY
  for (const count of mayClip ? STEP_COUNTS : [TOP_CODE]) {
    // …and it is at most 255 eighths of a step, so a grid far below zero needs larger steps.
    const step = Math.max((max - min) / count, (-8 * min) / TOP_BYTE)
    const low = count > TOP_CODE ? Math.min(min + ((count - TOP_CODE) / 2) * step, 0) : min
    const error = gridError(weights, at, low, step, best)
    if (error < best) {
      best = error
      steps[block] = step
      lows[block] = low
    }
  }
  if (mayClip) refine(weights, block, best)
}

/** One step of least squares: with the codes held, the best line through (code, weight) is a better grid. */
function refine(weights: Float32Array, block: number, error: number): void {
  const at = block * BLOCK
  let sumQ = 0
  let sumQQ = 0
  let sumW = 0
  let sumQW = 0
  for (let i = at; i < at + BLOCK; i++) {
    const q = code(weights[i], lows[block], 1 / steps[block])
    sumQ += q
    sumQQ += q * q
    sumW += weights[i]
    sumQW += q * weights[i]
  }
  const spread = BLOCK * sumQQ - sumQ * sumQ
  if (spread === 0) return
  const step = (BLOCK * sumQW - sumQ * sumW) / spread
  const low = (sumW - step * sumQ) / BLOCK
  const fits = step > 0 && low <= 0 && -8 * low <= TOP_BYTE * step
  if (fits && gridError(weights, at, low, step, error) < error) {
    steps[block] = step
    lows[block] = low
  }
}

/** The block's bytes under a row scale, as {@link roundBlock} left them. */
const rounded = { scale: 0, zero: 0, error: 0 }

/** Rounds the block's grid to bytes: tries the scales above and below, and for each the zero point that suits it best. */
function roundBlock(weights: Float32Array, block: number, rowScale: number): void {
  const at = block * BLOCK
  rounded.scale = 0
  rounded.zero = 0
  rounded.error = 0
  for (let i = at; i < at + BLOCK; i++) rounded.error += weights[i] * weights[i]
  if (steps[block] === 0 || rowScale === 0) return
  const below = Math.floor(steps[block] / (8 * rowScale))
  for (let scale = Math.max(below, 1); scale <= Math.min(Math.max(below + 1, 1), TOP_BYTE); scale++) {
    tryBytes(weights, at, rowScale, scale, lows[block])
  }
  if (below > TOP_BYTE) tryBytes(weights, at, rowScale, TOP_BYTE, lows[block])
}

function tryBytes(weights: Float32Array, at: number, rowScale: number, scale: number, low: number): void {
  const unit = rowScale * scale
  const zero = toByte(-low / unit)
  keepIfBetter(weights, at, unit, scale, zero)
  // With the codes held, the zero point wants to be the mean of 8q - w / unit.
  let sum = 0
  for (let i = at; i < at + BLOCK; i++) {
    sum += 8 * code(weights[i], -unit * zero, 1 / (8 * unit)) - weights[i] / unit
  }
  const centred = toByte(sum / BLOCK)
  if (centred !== zero) keepIfBetter(weights, at, unit, scale, centred)
}

function keepIfBetter(weights: Float32Array, at: number, unit: number, scale: number, zero: number): void {
  const error = gridError(weights, at, -unit * zero, 8 * unit, rounded.error)
  if (error >= rounded.error) return
  rounded.error = error
  rounded.scale = scale
  rounded.zero = zero
}

/** Squared error of the block on the grid low, low + step, …; gives up early, with what it has, once above `bound`. */
function gridError(weights: Float32Array, at: number, low: number, step: number, bound: number): number {
  const perStep = 1 / step
  let error = 0
  for (let i = at; i < at + BLOCK; i += 8) {
    for (let j = i; j < i + 8; j++) {
      const rest = weights[j] - low - step * code(weights[j], low, perStep)
      error += rest * rest
    }
    if (error > bound) return error
  }
  return error
}

/** The code of the point nearest to w on the grid that starts at `low` and has `perStep` points a unit. */
function code(w: number, low: number, perStep: number): number {
  const q = (w - low) * perStep + 0.5
  return q < 1 ? 0 : q >= TOP_CODE ? TOP_CODE : q | 0
}

function toByte(value: number): number {
  return Math.min(Math.max(Math.round(value), 0), TOP_BYTE)
}
