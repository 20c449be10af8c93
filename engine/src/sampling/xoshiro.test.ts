import { describe, expect, it } from 'vitest'
import { Xoshiro128 } from './xoshiro.ts'

describe('Xoshiro128', () => {
  // By the authors' C (xoshiro128starstar.c 1.1, splitmix64.c), two outputs of SplitMix64 as its state, low halves first.
  it.each([
    [0, [3737715805, 2584255861, 2876756834, 3286328325, 1553311962]],
    [1, [1695105466, 1423115009, 634581793, 1068227753, 716759206]],
    [-1, [477689756, 2493998634, 555695776, 607808419, 61340979]],
    [42, [1776835114, 4165204688, 17111135, 2317295270, 2792088233]],
    [2 ** 32, [3857403066, 3761880522, 2833589495, 1190737128, 4014693229]],
    [Number.MAX_SAFE_INTEGER, [1233166643, 1287031142, 661813442, 2960669951, 2601079046]],
  ])('seed %i', (seed, outputs) => {
    const random = new Xoshiro128(seed)
    expect(outputs.map(() => random.next())).toEqual(outputs)
  })

  it('gives numbers from 0 to below 1', () => {
    const random = new Xoshiro128(7)
    const draws = Array.from({ length: 100_000 }, () => random.uniform())
    expect(draws.every((draw) => draw >= 0 && draw < 1)).toBe(true)
    const mean = draws.reduce((sum, draw) => sum + draw, 0) / draws.length
    // Six standard deviations of the mean of that many.
    expect(Math.abs(mean - 0.5)).toBeLessThan((6 * Math.sqrt(1 / 12)) / Math.sqrt(draws.length))
  })
})
