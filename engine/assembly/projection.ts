/**
 * @module
 * A trunk matrix applied to all tokens of a chunk.
 */
import { Matrix } from './model.ts'
import { multiply } from './multiply.ts'
import { multiply4 } from './multiply4.ts'
import { recordBytes } from './record.ts'
import { clear } from './vector.ts'

/**
 * out[token, rows] = matrix · records, before the row scales. Buffers have room for a multiple of 4 tokens.
 *
 * @param cols a multiple of 32
 */
export function project(matrix: Matrix, rows: i32, cols: i32, records: usize, out: usize, count: i32): void {
  const recordStride = recordBytes(cols)
  const outStride = (<usize>rows) << 2
  const rowTiles = (rows + 15) >>> 4
  const blocks = cols >>> 5
  clear(out, outStride * <usize>count)
  while (count > 0) {
    if (count === 1) {
      multiply(matrix.tiles, matrix.planes, rowTiles, blocks, records, out)
      return
    }
    // Where two or three are left, the kernel runs over rows that nobody reads.
    multiply4(
      matrix.tiles,
      matrix.planes,
      rowTiles,
      blocks,
      records,
      records + recordStride,
      records + recordStride * 2,
      records + recordStride * 3,
      out,
      out + outStride,
      out + outStride * 2,
      out + outStride * 3,
    )
    records += recordStride << 2
    out += outStride << 2
    count -= 4
  }
}
