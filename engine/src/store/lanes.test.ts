import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { inLanes } from './lanes.ts'

const turns = async (count: number) => {
  for (let i = 0; i < count; i++) await Promise.resolve()
}

describe('inLanes', () => {
  test('does everything once, starts in order and never exceeds the limit', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(fc.nat(20)), fc.integer({ min: 1, max: 7 }), async (delays, limit) => {
        const started: number[] = []
        let running = 0
        let peak = 0
        await inLanes(delays.entries(), limit, async ([index, delay]) => {
          started.push(index)
          peak = Math.max(peak, ++running)
          await turns(delay)
          running -= 1
        })
        expect(started).toEqual(delays.map((_, index) => index))
        expect(peak).toBeLessThanOrEqual(limit)
        expect(running).toBe(0)
      }),
    )
  })

  test('fills all its lanes', async () => {
    let running = 0
    await inLanes([0, 1, 2, 3, 4, 5], 3, async () => {
      running += 1
      while (running % 3 !== 0) await turns(1)
    })
    expect(running).toBe(6)
  })

  test('a failure aborts the others, is waited for by all, and starts nothing more', async () => {
    const settled: number[] = []
    const started: number[] = []
    const working = inLanes([0, 1, 2, 3, 4], 2, async (item, signal) => {
      started.push(item)
      await turns(1)
      if (item === 1) throw new Error('one failed')
      await new Promise((done) => signal.addEventListener('abort', done))
      await turns(50)
      settled.push(item)
    })
    await expect(working).rejects.toThrow('one failed')
    expect(started).toEqual([0, 1])
    expect(settled).toEqual([0])
  })

  test('cancelling stops it', async () => {
    const abort = new AbortController()
    const started: number[] = []
    const working = inLanes(
      [0, 1, 2],
      1,
      async (item) => {
        started.push(item)
        abort.abort()
      },
      abort.signal,
    )
    await expect(working).rejects.toMatchObject({ code: 'cancelled' })
    expect(started).toEqual([0])
  })
})
