/**
 * @module
 * The packer's side of q4.py: quantises two matrices from stdin as `weights-tool pack` would, and prints the outcome.
 */
import { text } from 'node:stream/consumers'
import { dequantise, encodePlane } from '@sparsedge/engine/pack/layout'
import { z } from 'zod'
import { quantise } from '../../../src/quantise.ts'

const Request = z.object({
  rows: z.int(),
  cols: z.int(),
  weight: z.array(z.number()),
  rounded: z.array(z.number()),
})

const { rows, cols, weight, rounded } = Request.parse(JSON.parse(await text(process.stdin)))

function pack(data: number[]) {
  const matrix = quantise('golden', { shape: [rows, cols], data: Float32Array.from(data) }, 'q4')
  const tiles = encodePlane(matrix.planes[0], rows, cols)
  return {
    values: [...dequantise('q4', tiles, matrix.rowScales, rows, cols)],
    relativeError: matrix.relativeError,
  }
}

const direct = pack(weight)
const reply = {
  dequantised: direct.values,
  relativeError: direct.relativeError,
  dequantisedOfRounded: pack(rounded).values,
}
process.stdout.write(JSON.stringify(reply))
