import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { openSafetensors, writeSafetensors } from './safetensors.ts'

let directory: string
beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'safetensors-'))
})
afterAll(() => rm(directory, { recursive: true }))

/** A file with this header, stated length or not, and so many bytes of data. */
async function file(header: unknown, data: number, length?: bigint): Promise<string> {
  const text = new TextEncoder().encode(typeof header === 'string' ? header : JSON.stringify(header))
  const bytes = new Uint8Array(8 + text.length + data)
  new DataView(bytes.buffer).setBigUint64(0, length ?? BigInt(text.length), true)
  bytes.set(text, 8)
  const path = join(directory, `${Math.random()}.safetensors`)
  await writeFile(path, bytes)
  return path
}

const tensor = (shape: number[], start: number, end: number, dtype = 'F32') => ({
  dtype,
  shape,
  data_offsets: [start, end],
})

describe('a safetensors file', () => {
  it('gives back what was written, in F32 exactly', async () => {
    const tensors = [
      { name: 'a', dtype: 'F32' as const, shape: [2, 3] },
      { name: 'b', dtype: 'F16' as const, shape: [4] },
    ]
    const values: Record<string, Float32Array> = {
      a: Float32Array.of(1, -2.5, 3e-20, 4e20, 5, 1 / 3),
      b: Float32Array.of(0.5, -2, 65504, 0),
    }
    const path = join(directory, 'round.safetensors')
    await writeSafetensors(path, tensors, async (name) => values[name])
    const found = await openSafetensors(path)
    expect(found.names).toEqual(['a', 'b'])
    expect(await found.floats('a')).toEqual({ shape: [2, 3], data: values.a })
    expect(await found.floats('b')).toEqual({ shape: [4], data: values.b })
    await found.close()
  })

  it('may hold metadata, empty tensors and types that are only read as bytes', async () => {
    const header = {
      __metadata__: { format: 'pt' },
      codes: tensor([4], 0, 4, 'U8'),
      nothing: tensor([0, 8], 4, 4),
      scalar: tensor([], 4, 8),
    }
    const found = await openSafetensors(await file(header, 8))
    expect(found.names).toEqual(['codes', 'nothing', 'scalar'])
    expect(await found.bytes('codes')).toHaveLength(4)
    expect((await found.floats('scalar')).data).toHaveLength(1)
    await expect(found.floats('codes')).rejects.toMatchObject({ code: 'checkpoint_unsupported' })
    await expect(found.floats('other')).rejects.toMatchObject({ code: 'checkpoint_malformed' })
    await found.close()
  })
})

it('refuses to write what F16 cannot hold', async () => {
  const path = join(directory, 'large.safetensors')
  const tensors = [{ name: 'big', dtype: 'F16' as const, shape: [1] }]
  await expect(writeSafetensors(path, tensors, async () => Float32Array.of(1e6))).rejects.toMatchObject({
    code: 'checkpoint_unsupported',
    message: expect.stringContaining('big'),
  })
})

describe('a hostile file', () => {
  const cases: [string, string, unknown, number, bigint?][] = [
    ['a header length beyond the file', 'ends too early', '{}', 0, 5000n],
    ['a header of 2^63 bytes', 'header is too long', '{}', 0, 1n << 63n],
    ['a header that is no JSON', 'is not JSON', '{"a":', 0],
    ['a header that is no object', 'not as expected', '[]', 0],
    ['a tensor without a shape', 'described badly', { a: { dtype: 'F32', data_offsets: [0, 4] } }, 4],
    ['a negative dimension', 'described badly', { a: tensor([-1], 0, 4) }, 4],
    ['a fractional offset', 'described badly', { a: tensor([1], 0.5, 4.5) }, 4],
    ['an unknown type', 'unknown type', { a: tensor([1], 0, 4, 'F13') }, 4],
    [
      'a type named like a property of every object',
      'unknown type',
      { a: tensor([1], 0, 4, 'constructor') },
      4,
    ],
    ['a shape that is not its bytes', 'is not 8 bytes', { a: tensor([1], 0, 8) }, 8],
    ['dimensions whose product overflows', 'is not 4 bytes', { a: tensor([2 ** 40, 2 ** 40], 0, 4) }, 4],
    ['offsets in the wrong order', 'is not -4 bytes', { a: tensor([1], 4, 0) }, 4],
    ['overlapping tensors', 'overlaps', { a: tensor([2], 0, 8), b: tensor([1], 4, 8) }, 8],
    ['the same bytes twice', 'overlaps', { a: tensor([1], 0, 4), b: tensor([1], 0, 4) }, 4],
    ['a hole', 'leaves a hole', { a: tensor([1], 0, 4), b: tensor([1], 8, 12) }, 12],
    ['a tensor beyond the end', 'is cut off', { a: tensor([1000], 0, 4000) }, 100],
    ['bytes of no tensor', 'belong to no tensor', { a: tensor([1], 0, 4) }, 12],
  ]
  it.each(cases)('with %s is refused', async (_, message, header, data, length) => {
    const path = await file(header, data, length)
    await expect(openSafetensors(path)).rejects.toMatchObject({
      code: expect.stringMatching(/^checkpoint_(malformed|unsupported)$/),
      message: expect.stringContaining(message),
    })
  })

  it('that is no file at all is refused', async () => {
    const missing = join(directory, 'missing.safetensors')
    await expect(openSafetensors(missing)).rejects.toMatchObject({ code: 'checkpoint_malformed' })
    const empty = join(directory, 'empty.safetensors')
    await writeFile(empty, '')
    await expect(openSafetensors(empty)).rejects.toThrow('ends too early')
  })

  it('that is a directory is refused', async () => {
    await expect(openSafetensors(directory)).rejects.toMatchObject({
      code: 'checkpoint_malformed',
      message: expect.stringContaining('is not a file'),
    })
  })

  it('never causes anything but a typed error', async () => {
    const path = join(directory, 'fuzz.safetensors')
    const good = JSON.stringify({ a: tensor([2, 2], 0, 16), b: tensor([4], 16, 24, 'F16') })
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.tuple(fc.nat(good.length + 7), fc.integer({ min: 0, max: 255 })), { maxLength: 6 }),
        fc.nat(24),
        async (edits, data) => {
          const bytes = new Uint8Array(8 + good.length + data)
          new DataView(bytes.buffer).setBigUint64(0, BigInt(good.length), true)
          bytes.set(new TextEncoder().encode(good), 8)
          for (const [at, value] of edits) bytes[at] = value
          await writeFile(path, bytes)
          const opened = await openSafetensors(path).catch((error: unknown) => {
            expect(error).toMatchObject({ name: 'SparsedgeError' })
          })
          await opened?.close()
        },
      ),
      { numRuns: 200 },
    )
  })
})
