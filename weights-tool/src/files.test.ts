import { constants } from 'node:buffer'
import { SparsedgeError } from '@sparsedge/engine/errors'
import { describe, expect, it } from 'vitest'
import { allocate, cannot, inWords } from './files.ts'

const failure = (code: string) => Object.assign(new Error(`${code}: raw words, open 'x'`), { code })

describe('what the file system says', () => {
  it.each([
    ['ENOENT', 'it is not there; is the path right?'],
    ['EISDIR', 'it is a directory, not a file'],
    ['ENOTDIR', 'a file stands where a directory is needed'],
    ['EACCES', 'change its permissions'],
    ['ENOSPC', 'make room and try again'],
    ['EWHATEVER', 'raw words'],
  ])('%s', (code, words) => {
    const cause = failure(code)
    expect(() => cannot('read x')(cause)).toThrow(
      expect.objectContaining({
        name: 'SparsedgeError',
        code: 'store_unavailable',
        message: expect.stringMatching(new RegExp(`^cannot read x: .*${words.replace('?', '\\?')}`)),
        cause,
      }),
    )
  })

  it('is not said over what is a SparsedgeError already', () => {
    const known = new SparsedgeError('invalid_request', 'no')
    expect(() => cannot('read x')(known)).toThrow(known)
  })
})

describe('more memory than there is', () => {
  it.each([constants.MAX_LENGTH * 2, 2 ** 53, -1])('%d bytes', (bytes) => {
    expect(() => allocate(bytes, 'tensor x')).toThrow(
      expect.objectContaining({
        code: 'memory_exhausted',
        message: expect.stringContaining(`tensor x takes ${bytes} bytes`),
      }),
    )
  })

  it('wherever it is asked for', () => {
    const words = (work: () => unknown) => {
      try {
        return work()
      } catch (error) {
        return inWords(error)
      }
    }
    for (const work of [() => new Float32Array(2 ** 52), () => Array(-1), () => 'x'.repeat(2 ** 30)]) {
      expect(words(work)).toMatchObject({ code: 'memory_exhausted', cause: expect.any(RangeError) })
    }
    expect(words(() => (1).toFixed(101))).toBeInstanceOf(RangeError)
  })
})
