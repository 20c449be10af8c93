import { describe, expect, it } from 'vitest'
import { PagePool } from './backends/wasm/sequence.ts'
import { DEFAULT_EXPERTS } from './request.ts'
import { Admission, Turns } from './schedule.ts'

/** Long enough for everything that is due, however busy the machine. */
const settle = () => new Promise((resolve) => setTimeout(resolve, 20))
const code = (code: string) => expect.objectContaining({ code })

const EXPERTS = { rule: { top: 0, levels: new Float32Array(1) }, options: DEFAULT_EXPERTS }

describe('Turns', () => {
  it('runs one unit of work at a time, in the order of asking', async () => {
    const turns = new Turns()
    const log: string[] = []
    const work = (name: string) =>
      turns.take(1, async () => {
        log.push(`${name} begins`)
        await settle()
        log.push(`${name} ends`)
        return name
      })
    expect(await Promise.all(['a', 'b', 'c'].map(work))).toEqual(['a', 'b', 'c'])
    expect(log).toEqual(['a begins', 'a ends', 'b begins', 'b ends', 'c begins', 'c ends'])
  })

  it('lets those who come again and again alternate', async () => {
    const turns = new Turns()
    const log: string[] = []
    const loop = async (name: string) => {
      for (let i = 0; i < 4; i++) await turns.take(1, () => log.push(name))
    }
    await Promise.all(['a', 'b', 'c'].map(loop))
    expect(log.join('')).toBe('abc'.repeat(4))
  })

  it('lets the event loop run between units of work that never wait', async () => {
    const turns = new Turns()
    let timerFired = false
    setTimeout(() => {
      timerFired = true
    })
    for (let i = 0; i < 10_000 && !timerFired; i++) await turns.take(1, () => {})
    expect(timerFired).toBe(true)
  })

  it('goes on after work that fails', async () => {
    const turns = new Turns()
    const failing = turns.take(1, () => Promise.reject(new Error('no')))
    const next = turns.take(1, () => 'yes')
    await expect(failing).rejects.toThrow('no')
    expect(await next).toBe('yes')
  })

  it('does not run what was cancelled, before, in line, or just when its turn came', async () => {
    const turns = new Turns()
    const { promise, resolve } = Promise.withResolvers<void>()
    const [before, inLine, late] = [1, 2, 3].map(() => new AbortController())
    const ran: string[] = []
    before.abort()
    await expect(turns.take(1, () => ran.push('before'), before.signal)).rejects.toThrow(code('cancelled'))

    const first = turns.take(1, () => promise)
    const waiting = turns.take(1, () => ran.push('in line'), inLine.signal)
    const granted = turns.take(1, () => ran.push('late'), late.signal)
    const last = turns.take(1, () => ran.push('last'))
    await settle()
    inLine.abort()
    await expect(waiting).rejects.toThrow(code('cancelled'))
    const refused = expect(granted).rejects.toThrow(code('cancelled'))
    resolve()
    late.abort()
    await refused
    await Promise.all([first, last])
    expect(ran).toEqual(['last'])
    expect(await turns.take(1, () => 'free')).toBe('free')
  })
})

describe('Admission', () => {
  /** Sequences of 32, 64 and 96 tokens take 1, 2 and 3 of four pages. */
  function room(limit = 10) {
    const pool = new PagePool(4)
    const admission = new Admission(limit)
    return {
      admission,
      enter: (tokens: number, signal?: AbortSignal) =>
        admission.enter(() => pool.open(tokens, EXPERTS), signal),
    }
  }
  const state = async (...promises: Promise<unknown>[]) => {
    const states = promises.map(() => 'waits')
    for (const [i, promise] of promises.entries()) {
      promise.then(
        () => {
          states[i] = 'in'
        },
        () => {
          states[i] = 'refused'
        },
      )
    }
    await settle()
    return states.join(' ')
  }

  it('lets in who fits, and the others when there is room, in order', async () => {
    const { admission, enter } = room()
    const [a, b, c, d] = [enter(64), enter(32), enter(96), enter(32)]
    // The last would fit, but does not overtake.
    expect(await state(a, b, c, d)).toBe('in in waits waits')
    admission.leave(await b)
    expect(await state(c, d)).toBe('waits waits')
    admission.leave(await a)
    expect(await state(c, d)).toBe('in in')
  })

  it('takes back what was given once only', async () => {
    const { admission, enter } = room()
    const a = await enter(96)
    admission.leave(a)
    admission.leave(a)
    expect(await state(enter(96), enter(32), enter(32))).toBe('in in waits')
  })

  it('refuses more than its limit, until someone has left', async () => {
    const { admission, enter } = room(3)
    const [a, b, c] = [enter(96), enter(96), enter(32)]
    expect(await state(a, b, c)).toBe('in waits waits')
    await expect(enter(32)).rejects.toThrow(code('queue_full'))
    admission.leave(await a)
    expect(await state(b, c, enter(32))).toBe('in in waits')
  })

  it('refuses at once what can never fit, and lets in who stands behind it', async () => {
    const { enter } = room()
    const never = enter(1000)
    expect(await state(never, enter(32))).toBe('refused in')
    await expect(never).rejects.toThrow(code('memory_exhausted'))
  })

  it('does not wait for room that nobody will make', async () => {
    const full = new PagePool(1)
    full.open(32, EXPERTS)
    await expect(new Admission(5).enter(() => full.open(32, EXPERTS))).rejects.toThrow(code('queue_full'))
  })

  it('lets those in line go, and whoever they kept out in', async () => {
    const { admission, enter } = room(3)
    const gone = new AbortController()
    const a = enter(64)
    const large = enter(96, gone.signal)
    const small = enter(32)
    expect(await state(a, large, small)).toBe('in waits waits')
    gone.abort()
    expect(await state(large, small)).toBe('refused in')
    await expect(large).rejects.toThrow(code('cancelled'))
    await expect(enter(32, gone.signal)).rejects.toThrow(code('cancelled'))
    // The two that left count no longer.
    admission.leave(await a)
    expect(await state(enter(64), small)).toBe('in in')
  })

  it('gives a sequence back that comes too late', async () => {
    const { admission, enter } = room()
    const gone = new AbortController()
    const a = await enter(96)
    const waiting = enter(96, gone.signal)
    const refused = expect(waiting).rejects.toThrow(code('cancelled'))
    gone.abort()
    admission.leave(a)
    await refused
    expect(await state(enter(96), enter(32))).toBe('in in')
  })
})
