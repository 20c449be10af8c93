import { beforeEach, describe, expect, test } from 'vitest'
import { type MemoryStore, memoryStore } from './memory.ts'
import { type ShardStore, shardKey } from './store.ts'
import { verified } from './verified.ts'

const first = Uint8Array.of(1, 2, 3)
const second = Uint8Array.of(4, 5, 6, 7)
let memory: MemoryStore
let hashes: [string, string]
let bundle: string

beforeEach(async () => {
  memory = memoryStore()
  hashes = [await memory.putShard(first), await memory.putShard(second)]
  bundle = await memory.putShard(Uint8Array.of(...first, ...second))
})

const into = () => [
  { hash: hashes[0], bytes: new Uint8Array(3).fill(9) },
  { hash: hashes[1], bytes: new Uint8Array(4).fill(9) },
]

describe('verified', () => {
  test('passes on what is right, and the tier that served it', async () => {
    const destinations = into()
    expect(await verified(memory).read(bundle, destinations)).toBe('memory')
    expect(destinations.map(({ bytes }) => bytes)).toEqual([first, second])
  })

  test.each([0, 2, 3, 6])(
    'one flipped bit in byte %i is found, and nothing of the read stays',
    async (at) => {
      memory.objects.get(shardKey(bundle))?.set([255], at)
      const destinations = into()
      await expect(verified(memory).read(bundle, destinations)).rejects.toMatchObject({
        code: 'shard_hash_mismatch',
        place: { shard: hashes[at < 3 ? 0 : 1], tier: 'memory' },
      })
      expect(destinations.map(({ bytes }) => bytes)).toEqual([new Uint8Array(3), new Uint8Array(4)])
    },
  )

  test('what nobody wants is not verified and may share memory', async () => {
    memory.objects.get(shardKey(bundle))?.set([255], 0)
    const [, wanted] = into()
    await verified(memory).read(bundle, [{ hash: null, bytes: new Uint8Array(3) }, wanted])
    expect(wanted.bytes).toEqual(second)
  })

  test('a read that fails half-way leaves zeros', async () => {
    const broken: ShardStore = {
      ...memory,
      async read(_, [destination]) {
        destination.bytes.set([1, 2])
        throw new Error('connection lost')
      },
    }
    const destinations = into()
    await expect(verified(broken).read(bundle, destinations)).rejects.toThrow('connection lost')
    expect(destinations[0].bytes).toEqual(new Uint8Array(3))
  })

  test('wrapping twice verifies once', () => {
    const store = verified(memory)
    expect(verified(store)).toBe(store)
  })
})
