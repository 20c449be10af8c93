import { describe, expect, it } from 'vitest'
import { GATES, type TinyOptions, tinyPack, tinySource } from '../../../../test/fixtures/tiny.ts'
import { type ReferenceBackend, referenceBackend, referenceOf } from './index.ts'

const TOKENS = Int32Array.of(5, 17, 3, 200, 42, 42, 7, 1, 99, 12)

/** The reference on the float weights of a tiny model. */
async function tiny(options: TinyOptions = {}): Promise<ReferenceBackend> {
  return referenceOf(tinySource(options))
}

const models: [string, TinyOptions][] = [
  ...Object.entries(GATES).map(([name, gate]): [string, TinyOptions] => [`gate ${name}`, { gate }]),
  ['a shared expert', { sharedUnits: 32 }],
  ['an untied head', { tiedHead: false }],
  ['scaled rotations', { ropeScale: 1.25 }],
  ['as many key as query heads', { kvHeads: 4 }],
  ['a number of experts that is no multiple of 4', { experts: 5 }],
]

describe('ReferenceBackend', () => {
  it.each(models)('gives the same bits in one call and in many: %s', async (_, options) => {
    const backend = await tiny(options)
    const at = [...backend.trace(backend.open(10), TOKENS).logits]
    for (const cuts of [[10], [1, 1, 1, 1, 1, 1, 1, 1, 1, 1], [3, 6, 1]]) {
      const sequence = backend.open(10)
      let done = 0
      for (const length of cuts) {
        const logits = backend.step(sequence, TOKENS.subarray(done, done + length))
        done += length
        expect([...logits]).toEqual(at.slice((done - 1) * backend.config.vocab, done * backend.config.vocab))
      }
      expect(sequence.length).toBe(10)
    }
  })

  it('opens a pack, and answers with the weights that the pack holds', async () => {
    const { manifest, store, source } = await tinyPack({
      layouts: { embedding: 'q8', attention: 'q8', experts: 'q8' },
    })
    const [packed, exact] = [await referenceBackend()({ manifest, store }), await referenceOf(source)]
    const [ours, theirs] = [await packed.step(packed.open(10), TOKENS), exact.step(exact.open(10), TOKENS)]
    expect(ours.length).toBe(manifest.config.vocab)
    const difference = Math.max(...ours.map((logit, i) => Math.abs(logit - theirs[i])))
    expect(difference).toBeGreaterThan(0)
    expect(difference).toBeLessThan(0.2)
  })

  it('reads a look-ahead gate one layer early: its scores are those of the router on the layer before', async () => {
    // The same weights, but for the source of the gates: layer 0 reads its own input either way.
    const [own, previous] = [
      await tiny({ gate: GATES.clamped, layers: 2 }),
      await tiny({ gate: GATES.clampedLookAhead, layers: 2 }),
    ]
    const [a, b] = [own.trace(own.open(10), TOKENS), previous.trace(previous.open(10), TOKENS)]
    expect(b.gates[0]).toEqual(a.gates[0])
    expect(b.gates[1].scores).not.toEqual(a.gates[1].scores)
  })

  it('counts the experts that ran', async () => {
    const backend = await tiny({ gate: GATES.softmaxTopK })
    const sequence = backend.open(10)
    const { gates } = backend.trace(sequence, TOKENS)
    const { layers, experts } = backend.config
    expect(sequence.usage.activated).toBe(10 * layers * 2)
    expect(sequence.usage.possible).toBe(10 * layers * experts)
    expect(sequence.usage.activeShare).toBe(2 / experts)
    expect(sequence.usage.misses).toBe(0)
    const used = gates.map(({ weights }) =>
      [...Array(experts).keys()].filter((e) => TOKENS.some((_, t) => weights[t * experts + e] > 0)),
    )
    expect(sequence.usage.hits).toBe(used.flat().length)
  })

  it('keeps sequences apart', async () => {
    const backend = await tiny()
    const [a, b] = [backend.open(10), backend.open(10)]
    const alone = backend.step(backend.open(10), TOKENS)
    backend.step(a, TOKENS.subarray(0, 4))
    backend.step(b, TOKENS.subarray(5))
    expect(backend.step(a, TOKENS.subarray(4))).toEqual(alone)
  })

  it('refuses what does not fit, and goes on as if it had not been asked', async () => {
    const backend = await tiny()
    const sequence = backend.open(10)
    backend.step(sequence, TOKENS.subarray(0, 4))
    expect(() => backend.step(sequence, TOKENS)).toThrow(expect.objectContaining({ code: 'prompt_too_long' }))
    expect(() => backend.step(sequence, TOKENS.subarray(4), AbortSignal.abort())).toThrow(
      expect.objectContaining({ code: 'cancelled' }),
    )
    expect(backend.step(sequence, TOKENS.subarray(4))).toEqual(backend.step(backend.open(10), TOKENS))
  })

  it('says when there is no memory for a sequence', async () => {
    const backend = await tiny()
    expect(() => backend.open(2 ** 40)).toThrow(expect.objectContaining({ code: 'memory_exhausted' }))
  })

  it('gives memory back, twice without harm', async () => {
    const backend = await tiny()
    const sequence = backend.open(10)
    sequence.close()
    sequence.close()
    expect(() => backend.step(sequence, TOKENS)).toThrow(TypeError)
  })
})
