/**
 * What happens when a backend cannot be had, or fails for good: the WASM backend takes over, and the conversation goes on.
 * The first backend here is the reference, made to fail; a real device is destroyed in test/runtimes/gpu.
 */
import { createEngine } from '@sparsedge/engine'
import type { Backend, BackendFactory, Logits, Sequence } from '@sparsedge/engine/backends/backend'
import { withFallback } from '@sparsedge/engine/backends/fallback'
import { namedBackend } from '@sparsedge/engine/backends/named'
import { type ErrorCode, SparsedgeError } from '@sparsedge/engine/errors'
import { referenceBackend } from '@sparsedge/engine/reference'
import { describe, expect, it } from 'vitest'
import { GATES, tinyPack } from '../fixtures/tiny.ts'
import { logitsOf, MODULES, tinyBackend, tinyTokens } from '../wasm/wasm.ts'

const tokens = tinyTokens(20)
const modules = MODULES['plain and relaxed']
const pack = await tinyPack({ gate: GATES.softmaxTopK })
const wasm: BackendFactory = () => tinyBackend(pack)

/** The reference, until it has made so many steps. */
function failingAfter(steps: number, code: ErrorCode, how: 'throws' | 'rejects'): BackendFactory {
  return async (given, signal) => {
    const backend = await referenceBackend()(given, signal)
    let left = steps
    return {
      name: backend.name,
      config: backend.config,
      open: (capacity, experts) => backend.open(capacity, experts),
      step(sequence: Sequence, ids: Int32Array): Logits | Promise<Logits> {
        if (left-- > 0)
          return how === 'throws' ? backend.step(sequence, ids) : Promise.resolve(backend.step(sequence, ids))
        const error = new SparsedgeError(code, 'gone')
        if (how === 'throws') throw error
        return Promise.reject(error)
      },
    }
  }
}

/** Steps of one token. @returns the last logits */
async function run(backend: Backend, sequence: Sequence, ids: Int32Array): Promise<Float32Array> {
  let logits = new Float32Array(0)
  for (const id of ids) logits = Float32Array.from(await backend.step(sequence, Int32Array.of(id)))
  return logits
}

describe.each(['throws', 'rejects'] as const)('a first backend that %s', (how) => {
  it('is followed by the second, which is told all sequences', async () => {
    const reasons: string[] = []
    const backend = await withFallback(failingAfter(12, 'device_lost', how), wasm, ({ code }) =>
      reasons.push(code),
    )(pack)
    expect(backend.name).toBe('reference')
    const [a, b] = [backend.open(64), backend.open(64)]
    await run(backend, a, tokens.subarray(0, 8))
    await run(backend, b, tokens.subarray(0, 4))
    // The first that finds out, one that has been waiting, and one that comes later.
    const fromA = await run(backend, a, tokens.subarray(8))
    const fromB = await run(backend, b, tokens.subarray(4, 9))
    expect(backend.name).toBe('wasm-relaxed')
    expect(Math.max(...(backend.runs?.peaks ?? []))).toBe(Math.max(...fromB))
    const own = await tinyBackend(pack)
    expect(fromA).toEqual(await logitsOf(own, tokens))
    expect(fromB).toEqual(await logitsOf(own, tokens.subarray(0, 9)))
    expect(await run(backend, backend.open(64), tokens)).toEqual(fromA)
    expect([a.length, b.length]).toEqual([20, 9])
    expect(a.usage.possible).toBe(20 * 3 * 4)
    expect(reasons).toEqual(['device_lost'])
  })

  it('is not followed where the failure is not its own', async () => {
    const backend = await withFallback(failingAfter(0, 'shard_missing', how), wasm)(pack)
    await expect(async () => backend.step(backend.open(8), Int32Array.of(1))).rejects.toMatchObject({
      code: 'shard_missing',
    })
    expect(backend.name).toBe('reference')
  })

  it('gives its memory back twice', async () => {
    const backend = await withFallback(failingAfter(0, 'memory_exhausted', how), wasm)(pack)
    // 256 tokens are all that the second has: they come back when a sequence is closed.
    for (let i = 0; i < 3; i++) {
      const sequence = backend.open(200)
      await run(backend, sequence, tokens)
      sequence.close()
      sequence.close()
    }
  })
})

it('fails where the second cannot be built, and tries again at the next step', async () => {
  let tries = 0
  const second: BackendFactory = async () => {
    tries += 1
    if (tries === 1) throw new SparsedgeError('store_unavailable', 'no trunk today')
    return tinyBackend(pack)
  }
  const backend = await withFallback(failingAfter(1, 'device_lost', 'rejects'), second)(pack)
  const sequence = backend.open(64)
  await run(backend, sequence, tokens.subarray(0, 1))
  await expect(run(backend, sequence, tokens.subarray(1))).rejects.toMatchObject({
    code: 'store_unavailable',
  })
  expect(await run(backend, sequence, tokens.subarray(1))).toEqual(
    await logitsOf(await tinyBackend(pack), tokens),
  )
})

// Node has no WebGPU, and the package that would add it is not installed.
describe('createEngine in a runtime without a GPU', () => {
  const create = (backend: 'auto' | 'wasm' | 'webgpu') =>
    createEngine({ store: pack.store, model: 'tiny', backend })

  it('takes WASM by name, and where it may choose', async () => {
    expect((await create('wasm')).backend).toBe('wasm-relaxed')
    expect((await create('auto')).backend).toBe('wasm-relaxed')
  })
  it('says why the GPU was not taken', async () => {
    const reasons: string[] = []
    await namedBackend('auto', { modules, onFallback: ({ message }) => reasons.push(message) })(pack)
    expect(reasons).toEqual([expect.stringContaining('no WebGPU')])
  })
  it('refuses to do without one that was asked for', async () => {
    await expect(create('webgpu')).rejects.toMatchObject({ code: 'backend_unavailable' })
  })
  it('says where it looked for the kernels, and how to tell it', async () => {
    await expect(namedBackend('wasm', { kernelsUrl: 'file:///nowhere/' })(pack)).rejects.toMatchObject({
      code: 'backend_unavailable',
      message: expect.stringMatching(
        /^the kernels cannot be loaded from file:\/\/\/nowhere\/: .*`kernelsUrl`$/,
      ),
    })
  })
})
