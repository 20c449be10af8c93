import { describe, expect, it } from 'vitest'
import { attend, colsOf, linear, type Matrix, rmsNorm, rotate, rowsOf, swiglu } from './maths.ts'

const matrix = (rows: number, cols: number, data: number[]): Matrix => ({
  data: Float32Array.from(data),
  rows,
  cols,
  stride: cols,
  offset: 0,
})

describe('linear', () => {
  // 6 rows: no multiple of the four that are computed at a time.
  const w = matrix(6, 2, [1, 0, 0, 1, 1, 1, 2, 0, 0, 2, 1, -1])
  const x = Float32Array.of(3, 5, -1, 4)

  it('multiplies every token with every row', () => {
    expect([...linear(w, x)]).toEqual([3, 5, 8, 6, 10, -2, -1, 4, 3, -2, 8, -5])
  })
  it('works on a run of rows', () => {
    expect([...linear(rowsOf(w, 4, 2), x)]).toEqual([10, -2, 8, -5])
  })
  it('works on a run of columns', () => {
    expect([...linear(colsOf(rowsOf(w, 1, 2), 1, 1), Float32Array.of(7))]).toEqual([7, 7])
  })
  it('takes no tokens', () => {
    expect(linear(w, new Float32Array(0)).length).toBe(0)
  })
})

describe('rmsNorm', () => {
  it('divides each token by its own root mean square', () => {
    const y = rmsNorm(Float32Array.of(3, 4, 0, 0, 30, 40, 0, 0), Float32Array.of(1, 2, 1, 1), 0)
    const expected = [1.2, 3.2, 0, 0, 1.2, 3.2, 0, 0]
    for (const [i, value] of y.entries()) expect(value).toBeCloseTo(expected[i], 6)
  })
  it('leaves zeros at zero', () => {
    expect([...rmsNorm(new Float32Array(4), new Float32Array(4).fill(1), 1e-5)]).toEqual([0, 0, 0, 0])
  })
})

describe('rotate', () => {
  it('turns component i with component i + headDim/2, by position times frequency, in every head', () => {
    const x = Float32Array.of(1, 0, 0, 0, 0, 1, 0, 0) // one token, two heads of 4
    rotate(x, 2, Float32Array.of(Math.PI / 4, Math.PI / 6), 2, 1) // position 2: a quarter turn, a sixth of one
    const expected = [0, 0, 1, 0, 0, 0.5, 0, Math.sqrt(3) / 2]
    for (const [i, value] of x.entries()) expect(value).toBeCloseTo(expected[i], 6)
  })
  it('counts positions from the start of the run, and scales', () => {
    const x = Float32Array.of(1, 0, 1, 0) // two tokens, one head of 2
    rotate(x, 1, Float32Array.of(Math.PI / 2), 0, 3)
    const expected = [3, 0, 0, 3]
    for (const [i, value] of x.entries()) expect(value).toBeCloseTo(expected[i], 6)
  })
})

describe('attend', () => {
  const shape = { heads: 2, kvHeads: 1, headDim: 1 }
  it('sees its own position and those before, never those after', () => {
    const keys = new Float32Array(3) // all equal: the mean of the values so far
    const values = Float32Array.of(1, 3, 8)
    const out = attend(new Float32Array(6), keys, values, 0, shape)
    expect([...out]).toEqual([1, 1, 2, 2, 4, 4])
  })
  it('weighs by softmax(q k / sqrt(headDim)), and goes on from earlier tokens', () => {
    const keys = Float32Array.of(0, Math.log(3))
    const out = attend(Float32Array.of(1, 0), keys, Float32Array.of(0, 4), 1, shape)
    expect(out[0]).toBeCloseTo(3, 6)
    expect(out[1]).toBeCloseTo(2, 6)
  })
  it('gives each group of query heads its own key-value head', () => {
    const out = attend(new Float32Array(4), new Float32Array(2), Float32Array.of(5, 7), 0, {
      heads: 4,
      kvHeads: 2,
      headDim: 1,
    })
    expect([...out]).toEqual([5, 5, 7, 7])
  })
})

describe('swiglu', () => {
  it('is silu(gate) · up', () => {
    const y = swiglu(Float32Array.of(0, 2, -100), Float32Array.of(9, 3, 1))
    expect(y[0]).toBe(0)
    expect(y[1]).toBeCloseTo((2 / (1 + Math.exp(-2))) * 3, 6)
    expect(y[2]).toBeCloseTo(0, 6)
  })
})
