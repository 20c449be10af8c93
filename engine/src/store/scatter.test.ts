import type { UnderlyingByteSource, UnderlyingSource } from 'node:stream/web'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { type ByteStream, gather, scatter } from './scatter.ts'
import { type Destination, MAX_MANIFEST_BYTES } from './store.ts'

/** A real stream that hands out chunks of the given sizes, counting up through the bytes, and tells if it was cancelled. */
function counting(sizes: readonly number[], type: 'bytes' | undefined) {
  const state = { cancelled: false }
  let next = 0
  let sent = 0
  const chunk = () => {
    const size = sizes[next++]
    return size === undefined ? undefined : Uint8Array.from({ length: size }, () => sent++ & 255)
  }
  const cancel = () => {
    state.cancelled = true
  }
  const bytes: UnderlyingByteSource = {
    type: 'bytes',
    pull(controller) {
      const value = chunk()
      if (value) return controller.enqueue(value)
      controller.close()
      controller.byobRequest?.respond(0)
    },
    cancel,
  }
  const chunks: UnderlyingSource<Uint8Array> = {
    pull(controller) {
      const value = chunk()
      if (value) controller.enqueue(value)
      else controller.close()
    },
    cancel,
  }
  const body: ByteStream = type ? new ReadableStream(bytes) : new ReadableStream(chunks)
  return { body, state }
}

const destinations = (sizes: readonly number[]): Destination[] =>
  sizes.map((size) => ({ hash: null, bytes: new Uint8Array(size) }))

const total = (sizes: readonly number[]) => sizes.reduce((sum, size) => sum + size, 0)
const counted = (length: number) => Uint8Array.from({ length }, (_, i) => i & 255)

describe.each([{ type: 'bytes' as const }, { type: undefined }])(
  'from a stream of type $type',
  ({ type }) => {
    const chunkSizes = fc.array(fc.integer({ min: 1, max: 300 }), { maxLength: 8 })

    test('however it is cut, the bytes land in order, exactly, or not at all', async () => {
      await fc.assert(
        fc.asyncProperty(chunkSizes, chunkSizes, async (sent, wanted) => {
          const { body } = counting(sent, type)
          const into = destinations(wanted)
          const scattering = scatter(body, undefined, into, 'x', 'http')
          if (total(sent) === total(wanted)) {
            await scattering
            const got = Buffer.concat(into.map(({ bytes }) => bytes))
            expect(got.equals(counted(total(wanted)))).toBe(true)
          } else if (total(sent) < total(wanted)) {
            await expect(scattering).rejects.toMatchObject({ code: 'shard_too_short', place: { shard: 'x' } })
          } else {
            await expect(scattering).rejects.toMatchObject({
              code: 'shard_too_long',
              place: { tier: 'http' },
            })
          }
        }),
      )
    })

    test('a chunk larger than the buffer arrives whole', async () => {
      const size = 200_001
      const into = destinations([size])
      await scatter(counting([size], type).body, size, into, 'x', 'http')
      expect(Buffer.from(into[0].bytes).equals(counted(size))).toBe(true)
    })

    test.each([
      { stated: 9, code: 'shard_too_short' },
      { stated: 11, code: 'shard_too_long' },
    ])('a stated size of $stated for 10 is refused unread', async ({ stated, code }) => {
      const { body, state } = counting([10], type)
      const into = destinations([10])
      await expect(scatter(body, stated, into, 'x', 'r2')).rejects.toMatchObject({ code })
      expect(state.cancelled).toBe(true)
      expect(into[0].bytes).toEqual(new Uint8Array(10))
    })

    test('cancelling ends a stalled read at once, and cancels the stream', async () => {
      const abort = new AbortController()
      let cancelled = false
      const stall = {
        pull: () => new Promise<void>(() => {}),
        cancel: () => {
          cancelled = true
        },
      }
      const body = type ? new ReadableStream({ type, ...stall }) : new ReadableStream(stall)
      const scattering = scatter(body, undefined, destinations([10]), 'x', 'r2', abort.signal)
      setImmediate(() => abort.abort())
      await expect(scattering).rejects.toMatchObject({ code: 'cancelled' })
      expect(cancelled).toBe(true)
    })

    test('a failure of the stream is passed on', async () => {
      const fail = {
        pull() {
          throw new Error('connection lost')
        },
      }
      const body = type ? new ReadableStream({ type, ...fail }) : new ReadableStream(fail)
      await expect(scatter(body, undefined, destinations([10]), 'x', 'r2')).rejects.toThrow('connection lost')
    })

    test('a manifest is gathered, an enormous one is refused', async () => {
      const bytes = await gather(counting([100_000, 3, 70_000], type).body, 'http')
      expect(Buffer.from(bytes).equals(counted(170_003))).toBe(true)
      const { body, state } = counting(new Array(1000).fill(MAX_MANIFEST_BYTES / 10), type)
      await expect(gather(body, 'http')).rejects.toMatchObject({ code: 'manifest_malformed' })
      expect(state.cancelled).toBe(true)
    })
  },
)
