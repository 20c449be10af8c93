import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import { type ErrorCode, SparsedgeError } from './errors.ts'
import { retried } from './retry.ts'

beforeEach(() => vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'performance'] }))
afterEach(() => vi.useRealTimers())

/** Fails with each of these in turn, then succeeds. */
function failing(...failures: Error[]) {
  const read = vi.fn(async () => {
    const failure = failures.shift()
    if (failure) throw failure
    return 'bytes'
  })
  return read
}
const error = (code: ErrorCode) => new SparsedgeError(code, code)
const many = (code: ErrorCode) => Array.from({ length: 10 }, () => error(code))

describe('retried', () => {
  test.each<ErrorCode>(['store_unavailable', 'shard_too_short', 'shard_hash_mismatch'])(
    'tries again after %s, until the attempts are spent',
    async (code) => {
      const read = failing(error(code), error(code))
      const result = retried(3, read)
      await vi.runAllTimersAsync()
      expect(await result).toBe('bytes')
      const failed = expect(retried(3, failing(...many(code)))).rejects.toThrow(code)
      await vi.runAllTimersAsync()
      await failed
    },
  )

  test.each<ErrorCode>(['shard_missing', 'shard_too_long', 'unknown_model', 'cancelled'])(
    'does not try again after %s',
    async (code) => {
      const read = failing(error(code))
      await expect(retried(3, read)).rejects.toThrow(code)
      expect(read).toHaveBeenCalledTimes(1)
    },
  )

  test('tries again where the store threw something of its own', async () => {
    const result = retried(2, failing(new Error('connection lost')))
    await vi.runAllTimersAsync()
    expect(await result).toBe('bytes')
  })

  test('pauses at least half as long as it says, at most so long, and twice as long each time', async () => {
    const times: number[] = []
    const read = async () => {
      times.push(performance.now())
      throw error('store_unavailable')
    }
    const failed = expect(retried(5, read)).rejects.toThrow()
    await vi.runAllTimersAsync()
    await failed
    expect(times).toHaveLength(5)
    for (let i = 1; i < 5; i++) {
      const pause = times[i] - times[i - 1]
      expect(pause).toBeGreaterThanOrEqual(25 * 2 ** (i - 1) - 1)
      expect(pause).toBeLessThanOrEqual(50 * 2 ** (i - 1) + 1)
    }
  })

  test.each([
    [6, 3],
    [40, 2],
  ])('of attempts that take %i s there are %i', async (seconds, attempts) => {
    const read = vi.fn(async () => {
      await new Promise((late) => setTimeout(late, 1000 * seconds))
      throw error('store_unavailable')
    })
    const failed = expect(retried(5, read)).rejects.toThrow('store_unavailable')
    await vi.runAllTimersAsync()
    await failed
    expect(read).toHaveBeenCalledTimes(attempts)
  })

  test('ends with its signal, in the pause too', async () => {
    const abort = new AbortController()
    const read = failing(...many('store_unavailable'))
    const failed = expect(retried(5, read, abort.signal)).rejects.toThrow(
      expect.objectContaining({ code: 'cancelled' }),
    )
    await vi.advanceTimersByTimeAsync(10)
    abort.abort()
    await failed
    expect(read).toHaveBeenCalledTimes(1)
    expect(vi.getTimerCount()).toBe(0)
  })
})
