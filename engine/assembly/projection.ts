/**
 * @module
 * A trunk matrix applied to all tokens of a chunk.
 */
import { Matrix } from './model.ts'
import { recordBytes } from './record.ts'
import { listToken, multiplySeveral } from './several.ts'
import { clear } from './vector.ts'

/**
 * out[token, rows] = matrix · records, before the row scales.
 *
 * @param cols a multiple of 32
 */
export function project(matrix: Matrix, rows: i32, cols: i32, records: usize, out: usize, count: i32): void {
  const recordStride = recordBytes(cols)
  const outStride = (<usize>rows) << 2
  clear(out, outStride * <usize>count)
  for (let t = 0; t < count; t++) listToken(t, records + recordStride * <usize>t, out + outStride * <usize>t)
  multiplySeveral(matrix.tiles, matrix.planes, (rows + 15) >>> 4, cols >>> 5, count)
}
