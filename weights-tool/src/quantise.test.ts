import { BLOCK, decodePlane, dequantise, encodePlane } from '@sparsedge/engine/pack/layout'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { relativeError } from '../../test/fixtures/relative-error.ts'
import { tileBytes } from './cut.ts'
import { type QuantisedMatrix, quantise } from './quantise.ts'

/** The float weights that a quantised matrix stands for, by the engine's own code. */
function floats(matrix: QuantisedMatrix): Float32Array {
  const { layout, rowScales, rows, cols, fineRows } = matrix
  return dequantise(layout, tileBytes(matrix), rowScales, rows, cols, fineRows)
}

function matrix(rows: number, cols: number, value: (row: number, col: number) => number) {
  const data = Float32Array.from({ length: rows * cols }, (_, i) => value(Math.floor(i / cols), i % cols))
  return { shape: [rows, cols], data }
}

const weight = fc.float({ min: -4, max: 4, noNaN: true })
const anyMatrix = fc
  .tuple(fc.integer({ min: 1, max: 20 }), fc.integer({ min: 1, max: 3 }))
  .chain(([rows, blocks]) =>
    fc
      .array(weight, { minLength: rows * blocks * BLOCK, maxLength: rows * blocks * BLOCK })
      .map((values) => ({ shape: [rows, blocks * BLOCK], data: Float32Array.from(values) })),
  )

describe('any matrix', () => {
  it.each(['q4', 'q8'] as const)('in %s: the stated error is the real one', (layout) => {
    fc.assert(
      fc.property(anyMatrix, (tensor) => {
        const quantised = quantise('w', tensor, layout)
        const real = relativeError(floats(quantised), tensor.data)
        expect(quantised.relativeError).toBeCloseTo(real, 5)
      }),
      { numRuns: 60 },
    )
  })

  it.each([
    ['q4', 15],
    // Twelve of the second plane's fifteen steps are sure: rounding to bytes may cost the others.
    ['q8', 15 * 12],
  ] as const)('in %s: the mean error of a row is below half a step of its widest block', (layout, steps) => {
    fc.assert(
      fc.property(anyMatrix, (tensor) => {
        const [rows, cols] = tensor.shape
        const found = floats(quantise('w', tensor, layout))
        for (let row = 0; row < rows; row++) {
          let widest = 0
          let squares = 0
          for (let at = row * cols; at < (row + 1) * cols; at += BLOCK) {
            const block = tensor.data.subarray(at, at + BLOCK)
            widest = Math.max(widest, Math.max(0, ...block) - Math.min(0, ...block))
            for (let i = at; i < at + BLOCK; i++) squares += (found[i] - tensor.data[i]) ** 2
          }
          // Floats round too: the engine adds the planes in float32.
          expect(Math.sqrt(squares / cols)).toBeLessThanOrEqual((widest / steps) * 0.5 + widest * 1e-6)
        }
      }),
      { numRuns: 100 },
    )
  })
})

/** Bytes that a block may have, with codes that reach both ends. */
const gridBlock = fc.record({
  scale: fc.integer({ min: 128, max: 255 }),
  zero: fc.integer({ min: 0, max: 255 }),
  codes: fc.array(fc.integer({ min: 0, max: 15 }), { minLength: BLOCK - 2, maxLength: BLOCK - 2 }),
})

describe('a source on a grid', () => {
  it('is found exactly where the scales fit in a byte', () => {
    fc.assert(
      fc.property(
        fc.array(gridBlock, { minLength: 1, maxLength: 4 }),
        fc.integer({ min: -20, max: 4 }),
        (row, e) => {
          const data = Float32Array.from(
            row.flatMap(({ scale, zero, codes }) =>
              [0, 15, ...codes].map((q) => 2 ** e * scale * (8 * q - zero)),
            ),
          )
          const tensor = { shape: [1, data.length], data }
          expect(floats(quantise('w', tensor, 'q4'))).toEqual(data)
        },
      ),
      { numRuns: 200 },
    )
  })

  it('of symmetric int4 with signed bfloat16 scales costs less than half a percent', () => {
    fc.assert(
      fc.property(
        fc.array(
          fc.tuple(
            fc.integer({ min: 128, max: 255 }),
            fc.boolean(),
            fc.infiniteStream(fc.integer({ min: 1, max: 15 })),
          ),
          {
            minLength: 1,
            maxLength: 6,
          },
        ),
        (blocks) => {
          // Scales of one to two binades, as rows of real models have them.
          const data = Float32Array.from(
            blocks.flatMap(([mantissa, negative, codes], b) => {
              const scale = (negative ? -1 : 1) * mantissa * 2 ** (b % 2 === 0 ? -12 : -13)
              // A block's largest magnitude has code 0: that is how its scale was chosen.
              return [0, ...codes.take(BLOCK - 1)].map((q) => (q - 8) * scale)
            }),
          )
          const tensor = { shape: [1, data.length], data }
          expect(quantise('w', tensor, 'q4').relativeError).toBeLessThan(0.005)
        },
      ),
      { numRuns: 200 },
    )
  })
})

describe('edge cases', () => {
  it('keeps zeros: rows without a scale, blocks without one', () => {
    const tensor = matrix(3, 64, (row, col) => (row === 1 || col < 32 ? 0 : col - 40))
    const { planes, rowScales, relativeError: error } = quantise('w', tensor, 'q4')
    expect(rowScales[1]).toBe(0)
    expect(planes[0].scales[0]).toBe(0)
    expect(error).toBeLessThan(0.05)
    expect(floats(quantise('w', tensor, 'q4')).subarray(64, 128)).toEqual(new Float32Array(64))
    expect(
      quantise(
        'w',
        matrix(2, 32, () => 0),
        'q8',
      ).relativeError,
    ).toBe(0)
  })

  it.each([
    ['all positive, where a zero point would have to be negative', (i: number) => 5 + i / 32, 0.05],
    ['all negative, beyond the largest zero point', (i: number) => -5 - i / 320, 0.03],
    ['constant', () => 3.25, 0.004],
    ['constant and negative', () => -3.25, 0.004],
    ['one outlier', (i: number) => (i === 7 ? 100 : Math.sin(i)), 0.05],
    ['very small', (i: number) => 1e-30 * Math.sin(i), 0.1],
    ['very large', (i: number) => 1e30 * Math.sin(i), 0.1],
  ])('%s', (_, value, bound) => {
    const tensor = matrix(1, 32, (_row, col) => value(col))
    const quantised = quantise('w', tensor, 'q4')
    expect(quantised.relativeError).toBeLessThan(bound)
    expect(relativeError(floats(quantised), tensor.data)).toBeLessThan(bound)
  })

  it('pads rows to tiles with scale 0', () => {
    const { planes } = quantise(
      'w',
      matrix(17, 32, (row, col) => row - col),
      'q4',
    )
    const padded = decodePlane(encodePlane(planes[0], 17, 32), 32, 32)
    expect(padded.scales.subarray(0, 17).every((scale) => scale > 0)).toBe(true)
    expect(padded.scales.subarray(17)).toEqual(new Uint8Array(15))
  })

  it.each([Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY])(
    'refuses %s, saying where',
    (bad) => {
      const tensor = matrix(4, 32, (row, col) => (row === 2 && col === 5 ? bad : 1))
      expect(() => quantise('model.norm.weight', tensor, 'q4')).toThrow(
        expect.objectContaining({
          code: 'checkpoint_malformed',
          message: expect.stringContaining('model.norm.weight is'),
        }),
      )
      expect(() => quantise('w', tensor, 'q4')).toThrow('[2, 5]')
    },
  )

  it('refuses columns that are no multiple of 32', () => {
    expect(() =>
      quantise(
        'w',
        matrix(1, 48, () => 1),
        'q4',
      ),
    ).toThrow(
      expect.objectContaining({
        code: 'checkpoint_unsupported',
        message: expect.stringContaining('48 columns'),
      }),
    )
  })
})
