/**
 * @module
 * Cutting and joining quantised matrices, plane by plane: rows are independent, columns in blocks of 32.
 */
import { BLOCK, encodePlane, type Plane } from '@sparsedge/engine/pack/layout'
import type { QuantisedMatrix } from './quantise.ts'

/** All planes in tiles, plane after plane. */
export function tileBytes({ planes, rows, cols, fineRows = rows }: QuantisedMatrix): Uint8Array<ArrayBuffer> {
  return concatBytes(planes.map((plane, p) => encodePlane(plane, p === 0 ? rows : fineRows, cols)))
}

export function stackRows(...parts: QuantisedMatrix[]): QuantisedMatrix {
  const [first] = parts
  const join = (pick: (plane: Plane) => Uint8Array, p: number) =>
    concatBytes(parts.map(({ planes }) => pick(planes[p])))
  return {
    ...first,
    rows: parts.reduce((sum, { rows }) => sum + rows, 0),
    rowScales: Float32Array.from(parts.flatMap(({ rowScales }) => [...rowScales])),
    planes: first.planes.map((_, p) => ({
      codes: join(({ codes }) => codes, p),
      scales: join(({ scales }) => scales, p),
      zeros: join(({ zeros }) => zeros, p),
    })),
  }
}

export function sliceRows(matrix: QuantisedMatrix, start: number, rows: number): QuantisedMatrix {
  const { cols } = matrix
  const blocks = cols / BLOCK
  const cut = (array: Uint8Array, width: number) => array.subarray(start * width, (start + rows) * width)
  return {
    ...matrix,
    rows,
    rowScales: matrix.rowScales.subarray(start, start + rows),
    planes: matrix.planes.map(({ codes, scales, zeros }) => ({
      codes: cut(codes, cols),
      scales: cut(scales, blocks),
      zeros: cut(zeros, blocks),
    })),
  }
}

/** `start` and `cols` are multiples of 32. */
export function sliceCols(matrix: QuantisedMatrix, start: number, cols: number): QuantisedMatrix {
  const cut = (array: Uint8Array, perBlock: number) => {
    const width = (matrix.cols / BLOCK) * perBlock
    const from = (start / BLOCK) * perBlock
    const part = (cols / BLOCK) * perBlock
    const out = new Uint8Array(matrix.rows * part)
    for (let row = 0; row < matrix.rows; row++) {
      out.set(array.subarray(row * width + from, row * width + from + part), row * part)
    }
    return out
  }
  return {
    ...matrix,
    cols,
    planes: matrix.planes.map(({ codes, scales, zeros }) => ({
      codes: cut(codes, BLOCK),
      scales: cut(scales, 1),
      zeros: cut(zeros, 1),
    })),
  }
}

export function concatBytes(parts: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const out = new Uint8Array(parts.reduce((sum, { length }) => sum + length, 0))
  let at = 0
  for (const part of parts) {
    out.set(part, at)
    at += part.length
  }
  return out
}
