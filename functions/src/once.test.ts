import { expect, test } from 'vitest'
import { once } from './once.ts'

test('callers that come together share one attempt, later ones its value', async () => {
  let made = 0
  const value = once(async () => {
    await Promise.resolve()
    return ++made
  })
  expect(value.state).toBe('cold')
  const together = Promise.all([value.get(), value.get()])
  expect(value.state).toBe('loading')
  expect(await together).toEqual([1, 1])
  expect(await value.get()).toBe(1)
  expect(value.state).toBe('ready')
})

test('a failure reaches everyone who waited and is forgotten', async () => {
  let attempts = 0
  const value = once(async () => {
    if (++attempts === 1) throw new Error('first')
    return attempts
  })
  const [a, b] = await Promise.allSettled([value.get(), value.get()])
  expect(a.status).toBe('rejected')
  expect(b.status).toBe('rejected')
  expect(value.state).toBe('failed')
  expect(await value.get()).toBe(2)
  expect(value.state).toBe('ready')
})
