import { describe, expect, test } from 'vitest'
import { memoryStore } from './memory.ts'
import { sha256 } from './sha256.ts'
import { MAX_MANIFEST_BYTES } from './store.ts'

const utf8 = (text: string) => new TextEncoder().encode(text)

describe('sha256', () => {
  test('agrees with the standard’s example, on memory of its own and on a view of a larger one', async () => {
    const expected = 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'
    expect(await sha256(utf8('abc'))).toBe(expected)
    const view = new Uint8Array(64).subarray(17, 20)
    view.set(utf8('abc'))
    expect(await sha256(view)).toBe(expected)
  })
})

describe('memoryStore', () => {
  test('scatters a shard over its destinations', async () => {
    const store = memoryStore()
    const hash = await store.putShard(utf8('abcdefg'))
    const head = new Uint8Array(3)
    const tail = new Uint8Array(4)
    const into = [
      { hash: null, bytes: head },
      { hash: null, bytes: tail },
    ]
    expect(await store.read(hash, into)).toBe('memory')
    expect(head).toEqual(utf8('abc'))
    expect(tail).toEqual(utf8('defg'))
  })

  test.each([
    { name: 'too few bytes', wanted: 8, code: 'shard_too_short' },
    { name: 'too many bytes', wanted: 6, code: 'shard_too_long' },
  ])('refuses a shard with $name', async ({ wanted, code }) => {
    const store = memoryStore()
    const hash = await store.putShard(utf8('abcdefg'))
    const reading = store.read(hash, [{ hash, bytes: new Uint8Array(wanted) }])
    await expect(reading).rejects.toMatchObject({ code, place: { shard: hash, tier: 'memory' } })
  })

  test('names what is not there', async () => {
    const store = memoryStore()
    const missing = '0'.repeat(64)
    await expect(store.read(missing, [])).rejects.toMatchObject({ code: 'shard_missing' })
    await expect(store.read('../secret', [])).rejects.toMatchObject({ code: 'shard_missing' })
    await expect(store.manifest('nobody')).rejects.toMatchObject({ code: 'unknown_model' })
    await expect(store.manifest('../secret')).rejects.toMatchObject({ code: 'unknown_model' })
  })

  test('refuses a manifest that cannot be one', async () => {
    const store = memoryStore()
    store.putManifest('large', new Uint8Array(MAX_MANIFEST_BYTES + 1))
    await expect(store.manifest('large')).rejects.toMatchObject({ code: 'manifest_malformed' })
    store.putManifest('large', new Uint8Array(MAX_MANIFEST_BYTES))
    await expect(store.manifest('large')).resolves.toHaveLength(MAX_MANIFEST_BYTES)
  })

  test('reads nothing for a request that was cancelled', async () => {
    const store = memoryStore()
    const hash = await store.putShard(utf8('abc'))
    const bytes = new Uint8Array(3)
    const reading = store.read(hash, [{ hash, bytes }], AbortSignal.abort())
    await expect(reading).rejects.toMatchObject({ code: 'cancelled' })
    expect(bytes).toEqual(new Uint8Array(3))
  })
})
