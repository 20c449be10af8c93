import { describe, expect, test } from 'vitest'
import { abortable } from './abortable.ts'

describe('abortable', () => {
  test('passes a result and a failure through', async () => {
    const { signal } = new AbortController()
    expect(await abortable(Promise.resolve(1), signal)).toBe(1)
    expect(await abortable(Promise.resolve(1), undefined)).toBe(1)
    await expect(abortable(Promise.reject(new Error('broken')), signal)).rejects.toThrow('broken')
  })

  test.each([
    { name: 'has fired', before: true },
    { name: 'fires', before: false },
  ])('stops waiting when the signal $name, and discards what comes later', async ({ before }) => {
    const abort = new AbortController()
    if (before) abort.abort()
    const { promise, resolve } = Promise.withResolvers<string>()
    const discarded: string[] = []
    const waiting = abortable(promise, abort.signal, (late) => {
      discarded.push(late)
    })
    abort.abort()
    await expect(waiting).rejects.toMatchObject({ code: 'cancelled' })
    expect(discarded).toEqual([])
    resolve('late')
    await promise
    await Promise.resolve()
    expect(discarded).toEqual(['late'])
  })

  test('a failure that comes later goes unnoticed', async () => {
    const abort = new AbortController()
    const { promise, reject } = Promise.withResolvers<string>()
    const waiting = abortable(promise, abort.signal)
    abort.abort()
    await expect(waiting).rejects.toMatchObject({ code: 'cancelled' })
    reject(new Error('late'))
    await new Promise((turn) => setImmediate(turn))
  })
})
