import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { compile } from '../../../assembly/build.ts'
import { dequantise, encodePlane, type Plane, planes, type QuantisedLayout } from '../../pack/layout.ts'

// Where the model is bound that the kernels look up their lists in, and the lists.
const MODEL = 1 << 11
const TERMS = 1 << 15
const BATCH = TERMS + (1 << 14)

const memory = new WebAssembly.Memory({ initial: 64 })
const floats = new Float32Array(memory.buffer)
const bytes = new Uint8Array(memory.buffer)

/** What a machine's dot product gives whose second operand is unsigned (select.ts). */
const UNSIGNED = 129540

/**
 * The unit-test build of the kernels, in each way in which it can form integers (assembly/dot.ts): the last one is only right,
 * and only ever chosen, where the machine's dot product takes unsigned bytes.
 */
const builds = await Promise.all([load('plain'), load('relaxed', 0), load('relaxed', 1)])
const unsigned = await load('relaxed', 2)
if (unsigned.call('probe') === UNSIGNED) builds.push(unsigned)

async function load(variant: 'plain' | 'relaxed', way = 0) {
  const module = new WebAssembly.Module(await compile(variant, 'testing.ts'))
  const { exports } = new WebAssembly.Instance(module, { env: { memory, abort: () => undefined } })
  const call = (name: string, ...args: number[]): number => {
    const kernel = exports[name]
    if (typeof kernel !== 'function') throw new Error(`no kernel ${name}`)
    return Number(kernel(...args))
  }
  call('useDot', way)
  call('bindLists', MODEL, TERMS, BATCH)
  return { name: `${variant}, way ${way}`, call, recordSize: call('recordSize') }
}

// Where the tests put things.
const INPUT = 1 << 12
const RECORDS = 1 << 16
const OUTPUT = 1 << 18
const SCALES = OUTPUT + (1 << 16)
const TILES = 1 << 20

const seeds = fc.integer({ min: 0, max: 2 ** 31 - 1 })

/** Uniform numbers from 0 to 1, seeded. */
function uniform(seed: number): () => number {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let t = Math.imul(state ^ (state >>> 15), 1 | state)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
}

/** Codes, scales and zero points over their whole range. */
function randomPlane(random: () => number, rows: number, cols: number): Plane {
  const fill = (length: number, below: number) =>
    Uint8Array.from({ length }, () => Math.floor(random() * below))
  const blocks = rows * (cols / 32)
  return { codes: fill(rows * cols, 16), scales: fill(blocks, 256), zeros: fill(blocks, 256) }
}

/** Activations that quantise without error: whole multiples of a power of two, one of 127 in every block. */
function exactActivations(random: () => number, length: number): Float32Array {
  const x = Float32Array.from({ length }, () => Math.round(random() * 254 - 127))
  for (let block = 0; block < length; block += 32) {
    x[block + Math.floor(random() * 32)] = random() < 0.5 ? 127 : -127
    const scale = 2 ** Math.round(random() * 8 - 4)
    for (let i = 0; i < 32; i++) x[block + i] *= scale
  }
  return x
}

describe('quantise', () => {
  it('is within half a step of every value, sums its codes and folds the weight into the scale', () => {
    fc.assert(
      fc.property(
        seeds,
        fc.integer({ min: 1, max: 20 }),
        fc.float({ min: 0, max: 1, noNaN: true }),
        (seed, blocks, weight) => {
          const random = uniform(seed)
          const x = Float32Array.from(
            { length: blocks * 32 },
            () => (random() - 0.5) * 10 ** (random() * 6 - 3),
          )
          floats.set(x, INPUT / 4)
          const build = builds[1]
          build.call('quantise', INPUT, x.length, RECORDS, weight)
          const view = new DataView(memory.buffer)
          for (let block = 0; block < blocks; block++) {
            const record = RECORDS + block * build.recordSize
            const peak = Math.max(...x.subarray(block * 32, block * 32 + 32).map(Math.abs))
            const scale = peak / 127
            let sum = 0
            for (let i = 0; i < 32; i++) {
              const code = view.getInt8(record + i)
              sum += code
              expect(Math.abs(x[block * 32 + i] - code * scale)).toBeLessThanOrEqual(scale * 0.50001)
            }
            expect(view.getInt32(record + 36, true)).toBe(sum)
            expect(view.getFloat32(record + 32, true)).toBeCloseTo(scale * weight, 6)
          }
        },
      ),
    )
  })

  it('makes nothing of zeros', () => {
    floats.fill(0, INPUT / 4, INPUT / 4 + 32)
    builds[1].call('quantise', INPUT, 32, RECORDS, 1)
    expect([...bytes.subarray(RECORDS, RECORDS + 40)]).toEqual(new Array(40).fill(0))
  })

  it.each(builds)('makes nothing of what is too small to be scaled, in $name', (build) => {
    floats.fill(1e-38, INPUT / 4, INPUT / 4 + 32)
    build.call('quantise', INPUT, 32, RECORDS, 1)
    const codes = build.recordSize - 16
    expect([...bytes.subarray(RECORDS, RECORDS + codes)]).toEqual(new Array(codes).fill(0))
  })

  it.each(builds)('loses no NaN, wherever in a block it is, in $name', (build) => {
    for (let i = 0; i < 32; i++) {
      for (const nan of [0x7fc00000, 0xffc00000]) {
        floats.fill(2, INPUT / 4, INPUT / 4 + 96)
        new Uint32Array(memory.buffer)[INPUT / 4 + 32 + i] = nan
        build.call('quantise', INPUT, 96, RECORDS, 1)
        const scales = [0, 1, 2].map((block) => floats[(RECORDS + (block + 1) * build.recordSize) / 4 - 4])
        expect(scales).toEqual([Math.fround(2 / 127), Number.NaN, Math.fround(2 / 127)])
      }
    }
  })
})

describe('multiply', () => {
  const layout = fc.constantFrom<QuantisedLayout>('q4', 'q8')
  const small = fc.record({
    seed: seeds,
    rowTiles: fc.integer({ min: 1, max: 5 }),
    blocks: fc.integer({ min: 1, max: 24 }),
    layout,
  })
  /** Long enough that one token's weights are read in several streams, with and without row tiles left over. */
  const long = fc.record({
    seed: seeds,
    rowTiles: fc.integer({ min: 8, max: 11 }),
    blocks: fc.integer({ min: 32, max: 36 }),
    layout,
  })

  /** Tokens at once: two pairs and one that is left. */
  const TOKENS = 5

  /** A random matrix, in memory and dequantised, and the tokens' activations. */
  function scene({
    seed,
    rowTiles,
    blocks,
    layout,
  }: {
    seed: number
    rowTiles: number
    blocks: number
    layout: QuantisedLayout
  }) {
    const random = uniform(seed)
    const rows = rowTiles * 16
    const cols = blocks * 32
    const tiles = new Uint8Array(planes(layout) * rowTiles * blocks * 288)
    for (let p = 0; p < planes(layout); p++) {
      tiles.set(encodePlane(randomPlane(random, rows, cols), rows, cols), p * rowTiles * blocks * 288)
    }
    bytes.set(tiles, TILES)
    const weights = dequantise(layout, tiles, new Float32Array(rows).fill(1), rows, cols)
    const tokens = Array.from({ length: TOKENS }, () => exactActivations(random, cols))
    const start = Float32Array.from({ length: TOKENS * rows }, () => random() * 1000)
    return { rows, cols, weights, tokens, start, planes: planes(layout), rowTiles, blocks }
  }

  type Scene = ReturnType<typeof scene>

  function exact({ rows, cols, weights, tokens, start }: Scene): Float64Array {
    const y = Float64Array.from(start)
    for (const [t, x] of tokens.entries()) {
      for (let row = 0; row < rows; row++) {
        for (let col = 0; col < cols; col++) y[t * rows + row] += weights[row * cols + col] * x[col]
      }
    }
    return y
  }

  /** All tokens through one build, one at a time or `together`, which is how many. */
  function compute(build: (typeof builds)[number], s: Scene, together: number): Float32Array {
    const stride = s.blocks * build.recordSize
    floats.set(s.start, OUTPUT / 4)
    for (const [t, x] of s.tokens.entries()) {
      const records = RECORDS + t * stride
      const out = OUTPUT + t * s.rows * 4
      floats.set(x, INPUT / 4)
      build.call('quantise', INPUT, s.cols, records, 1)
      if (t < together) build.call('listToken', t, records, out)
      else build.call('multiply', TILES, s.planes, s.rowTiles, s.blocks, records, out)
    }
    if (together > 0) build.call('multiplySeveral', TILES, s.planes, s.rowTiles, s.blocks, together)
    return floats.slice(OUTPUT / 4, OUTPUT / 4 + TOKENS * s.rows)
  }

  it.each([
    ['small', small, 60],
    ['long', long, 12],
  ])('adds the product of a %s matrix to what is there, as float64 has it', (_, shapes, numRuns) => {
    fc.assert(
      fc.property(shapes, (shape) => {
        const s = scene(shape)
        const expected = exact(s)
        const size = Math.max(...expected.map(Math.abs))
        for (const build of builds) {
          const y = compute(build, s, 0)
          for (let i = 0; i < y.length; i++) expect(Math.abs(y[i] - expected[i])).toBeLessThan(size * 2e-6)
        }
      }),
      { numRuns },
    )
  })

  it.each([
    ['small', small, 60],
    ['long', long, 12],
  ])(
    'gives the same bits for a %s matrix in every build, one token at a time or several',
    (_, shapes, numRuns) => {
      fc.assert(
        fc.property(shapes, (shape) => {
          const s = scene(shape)
          const expected = compute(builds[0], s, 0)
          for (const build of builds) {
            for (const together of [0, 1, 2, 3, TOKENS]) {
              expect(compute(build, s, together)).toEqual(expected)
            }
          }
        }),
        { numRuns },
      )
    },
  )
})

describe('exp4', () => {
  it('is within 5e-6 of e^x, within 1e-6 near 0, and 0 below -50', () => {
    const x = Float32Array.from({ length: 4000 }, (_, i) => -60 + (i * 148) / 4000)
    floats.set(x, INPUT / 4)
    builds[0].call('exponentials', INPUT, OUTPUT, x.length)
    const y = floats.subarray(OUTPUT / 4, OUTPUT / 4 + x.length)
    for (let i = 0; i < x.length; i++) {
      if (x[i] < -50) expect(y[i]).toBe(0)
      else expect(Math.abs(y[i] / Math.exp(x[i]) - 1)).toBeLessThan(Math.abs(x[i]) < 10 ? 1e-6 : 5e-6)
    }
  })

  it('is 0 at minus infinity and NaN of NaN', () => {
    floats.set([Number.NEGATIVE_INFINITY, Number.NaN, 0, -0], INPUT / 4)
    builds[0].call('exponentials', INPUT, OUTPUT, 4)
    expect([...floats.subarray(OUTPUT / 4, OUTPUT / 4 + 4)]).toEqual([0, Number.NaN, 1, 1])
  })
})

describe('normalise', () => {
  it('is RMSNorm, as float64 has it', () => {
    fc.assert(
      fc.property(seeds, fc.integer({ min: 1, max: 32 }), (seed, blocks) => {
        const random = uniform(seed)
        const length = blocks * 32
        const x = Float32Array.from({ length }, () => random() * 8 - 4)
        const weight = Float32Array.from({ length }, () => random() * 2)
        floats.set(x, INPUT / 4)
        floats.set(weight, SCALES / 4)
        builds[0].call('normalise', INPUT, SCALES, 1e-5, length, OUTPUT, RECORDS)
        const scale = 1 / Math.sqrt(x.reduce((sum, v) => sum + v * v, 0) / length + 1e-5)
        for (let i = 0; i < length; i++) {
          expect(Math.abs(floats[OUTPUT / 4 + i] - x[i] * scale * weight[i])).toBeLessThan(4e-6)
        }
      }),
    )
  })

  it.each([1e20, -1e38, Number.POSITIVE_INFINITY, Number.NaN])(
    'is NaN, not 0, where %f is in it',
    (large) => {
      floats.fill(1, INPUT / 4, INPUT / 4 + 64)
      floats.fill(1, SCALES / 4, SCALES / 4 + 64)
      floats[INPUT / 4 + 40] = large
      for (const build of builds) {
        build.call('normalise', INPUT, SCALES, 1e-5, 64, OUTPUT, RECORDS)
        expect([...floats.subarray(OUTPUT / 4, OUTPUT / 4 + 64)]).toEqual(new Array(64).fill(Number.NaN))
      }
    },
  )
})
