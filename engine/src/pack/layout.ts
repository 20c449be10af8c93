/**
 * @module
 * How a weight matrix lies in bytes. The layouts are the kernels' own, so that an isolate copies and never repacks;
 * docs/pack-format.md states them byte by byte.
 *
 * A matrix [rows, cols] is cut into tiles of 16 rows x 32 columns; rows are padded to 16 with zero scales. Tiles follow
 * each other along a row of tiles, then down. One tile, 288 bytes:
 *
 *     [16 u8 scale s][16 u8 zero point z][4 steps x 4 row groups x 4 rows x 4 bytes: two 4-bit codes q a byte]
 *
 * Byte i of step j, row group g, row r holds the codes of row 4g + r, columns 8j + i (low nibble) and 8j + 4 + i (high).
 * With the row's scale R (a float per row, kept in the trunk), one plane is worth
 *
 *     w = R · s · (8q - z)          that is, R·8s · (q - z/8): a zero point in eighths of a step
 *
 * `q4` is one such plane; `q8` is two, the second worth a sixteenth: w = R · (s₀ (8q₀ - z₀) + s₁ (8q₁ - z₁) / 16).
 * The second may end early and leave the rows after it as `q4` has them: a vocabulary lists its frequent tokens first.
 * `f32` is little-endian floats, row-major.
 */

export const LAYOUTS = ['f32', 'q4', 'q8'] as const
export type Layout = (typeof LAYOUTS)[number]
export type QuantisedLayout = Exclude<Layout, 'f32'>

export const TILE_ROWS = 16
export const BLOCK = 32
export const TILE_BYTES = 288
/** Offset of the codes within a tile: after 16 scales and 16 zero points. */
const CODES = 32
/** The second plane of `q8` counts one sixteenth. */
export const FINE_PLANE_SCALE = 1 / 16

/**
 * Bytes of a matrix [rows, cols] in a layout, all planes.
 *
 * @param fineRows how many rows the second plane of `q8` covers, from the first on
 */
export function layoutBytes(layout: Layout, rows: number, cols: number, fineRows = rows): number {
  if (layout === 'f32') return rows * cols * 4
  return planeBytes(rows, cols) + (layout === 'q8' ? planeBytes(fineRows, cols) : 0)
}

/** Bytes of one plane of tiles of a matrix [rows, cols]. */
export function planeBytes(rows: number, cols: number): number {
  return Math.ceil(rows / TILE_ROWS) * (cols / BLOCK) * TILE_BYTES
}

export function planes(layout: QuantisedLayout): 1 | 2 {
  return layout === 'q8' ? 2 : 1
}

/** One plane in plain form, before it is laid out in tiles. */
export interface Plane {
  /** 4-bit codes, [rows, cols], one a byte. */
  readonly codes: Uint8Array
  /** Block scales, [rows, cols / 32]. */
  readonly scales: Uint8Array
  /** Zero points in eighths of a step, [rows, cols / 32]. */
  readonly zeros: Uint8Array
}

/** Lays a plane out in tiles. Rows past the end, up to a multiple of 16, have scale 0. */
export function encodePlane(plane: Plane, rows: number, cols: number): Uint8Array {
  const out = new Uint8Array(planeBytes(rows, cols))
  const blocks = cols / BLOCK
  for (let row = 0; row < rows; row++) {
    for (let block = 0; block < blocks; block++) {
      const tile = tileOffset(row, block, blocks)
      out[tile + (row % TILE_ROWS)] = plane.scales[row * blocks + block]
      out[tile + TILE_ROWS + (row % TILE_ROWS)] = plane.zeros[row * blocks + block]
      const codes = row * cols + block * BLOCK
      for (let pair = 0; pair < BLOCK / 2; pair++) {
        const k = lowColumn(pair)
        out[tile + codeOffset(row, pair)] = plane.codes[codes + k] | (plane.codes[codes + k + 4] << 4)
      }
    }
  }
  return out
}

/** The inverse of {@link encodePlane}: tiles back to codes, scales and zero points. */
export function decodePlane(tiles: Uint8Array, rows: number, cols: number): Plane {
  const blocks = cols / BLOCK
  const codes = new Uint8Array(rows * cols)
  const scales = new Uint8Array(rows * blocks)
  const zeros = new Uint8Array(rows * blocks)
  for (let row = 0; row < rows; row++) {
    for (let block = 0; block < blocks; block++) {
      const tile = tileOffset(row, block, blocks)
      scales[row * blocks + block] = tiles[tile + (row % TILE_ROWS)]
      zeros[row * blocks + block] = tiles[tile + TILE_ROWS + (row % TILE_ROWS)]
      for (let pair = 0; pair < BLOCK / 2; pair++) {
        const byte = tiles[tile + codeOffset(row, pair)]
        const at = row * cols + block * BLOCK + lowColumn(pair)
        codes[at] = byte & 15
        codes[at + 4] = byte >> 4
      }
    }
  }
  return { codes, scales, zeros }
}

/**
 * Dequantises a matrix.
 *
 * @param tiles all planes of the matrix, plane after plane
 * @param rowScales R, [rows]
 * @param fineRows how many rows the second plane of `q8` covers
 * @returns [rows, cols]
 */
export function dequantise(
  layout: QuantisedLayout,
  tiles: Uint8Array,
  rowScales: Float32Array,
  rows: number,
  cols: number,
  fineRows = rows,
): Float32Array {
  const out = new Float32Array(rows * cols)
  const blocks = cols / BLOCK
  for (let p = 0; p < planes(layout); p++) {
    const rowsInPlane = p === 0 ? rows : fineRows
    const plane = decodePlane(tiles.subarray(p * planeBytes(rows, cols)), rowsInPlane, cols)
    const weight = p === 0 ? 1 : FINE_PLANE_SCALE
    for (let row = 0; row < rowsInPlane; row++) {
      const rowScale = rowScales[row] * weight
      for (let col = 0; col < cols; col++) {
        const block = row * blocks + (col >> 5)
        const level = plane.scales[block] * (8 * plane.codes[row * cols + col] - plane.zeros[block])
        out[row * cols + col] += rowScale * level
      }
    }
  }
  return out
}

function tileOffset(row: number, block: number, blocks: number): number {
  return (Math.floor(row / TILE_ROWS) * blocks + block) * TILE_BYTES
}

/** Where the pair-th byte of a row's block lies in its tile: step = pair / 4, byte within the row = pair % 4. */
function codeOffset(row: number, pair: number): number {
  const group = (row % TILE_ROWS) >> 2
  return CODES + (pair >> 2) * 64 + group * 16 + (row & 3) * 4 + (pair & 3)
}

/** The column of the low nibble of the pair-th byte; the high nibble's is 4 further. */
function lowColumn(pair: number): number {
  return (pair >> 2) * 8 + (pair & 3)
}
