import { describe, expect, it, onTestFinished, vi } from 'vitest'
import { type TinyPackOptions, tinyPack } from '../../test/fixtures/tiny.ts'
import { EOS, IM_END } from '../../test/fixtures/tiny-tokenizer.ts'
import type { Backend, BackendFactory, Sequence } from './backends/backend.ts'
import { referenceBackend } from './backends/reference/index.ts'
import { createEngine, type Engine, type EngineOptions } from './engine.ts'
import { SparsedgeError } from './errors.ts'
import { type GenerateEvent, type GenerateRequest, GREEDY, type SamplingParams } from './request.ts'
import { type ShardStore, shardKey } from './store/store.ts'

/** A random model never ends by itself, nor should it by chance. */
const ENDLESS = new Map([EOS, IM_END].map((token) => [token, -100]))
const request = (
  fields: Partial<GenerateRequest> = {},
  sampling: Partial<SamplingParams> = {},
): GenerateRequest => ({
  prompt: { text: 'hello the user' },
  maxTokens: 20,
  stop: [],
  ...fields,
  sampling: { ...GREEDY, seed: 1, logitBias: ENDLESS, ...sampling },
})
const code = (code: string) => expect.objectContaining({ code })

/** What the real backend was asked to do. */
interface Watch {
  readonly open: Set<Sequence>
  /** The sequence of each step. */
  readonly steps: Sequence[]
}

/** The reference backend on a tiny pack, watched; `during` may hold a step up or fail it. */
async function tinyEngine({
  pack,
  during = () => {},
  ...options
}: Partial<EngineOptions> & {
  pack?: TinyPackOptions
  during?: (step: number, signal?: AbortSignal) => unknown
} = {}) {
  const { store } = await tinyPack(pack)
  const watch: Watch = { open: new Set(), steps: [] }
  const backend: BackendFactory = async (parts, signal) =>
    watched(await referenceBackend()(parts, signal), watch, during)
  return { engine: await createEngine({ store, model: 'tiny', backend, ...options }), watch, store }
}

function watched(
  backend: Backend,
  watch: Watch,
  during: (step: number, signal?: AbortSignal) => unknown,
): Backend {
  return {
    name: backend.name,
    config: backend.config,
    open(capacity) {
      const sequence = backend.open(capacity)
      const close = sequence.close.bind(sequence)
      sequence.close = () => {
        watch.open.delete(sequence)
        close()
      }
      watch.open.add(sequence)
      return sequence
    },
    async step(sequence, tokens, signal) {
      expect(watch.open, 'a step of a sequence that is open').toContain(sequence)
      watch.steps.push(sequence)
      await during(watch.steps.length, signal)
      return backend.step(sequence, tokens, signal)
    },
  }
}

/** The text of all events, and the last one. */
async function run(engine: Engine, asked: GenerateRequest, signal?: AbortSignal) {
  const events: GenerateEvent[] = []
  for await (const event of engine.generate(asked, signal)) events.push(event)
  const done = events.at(-1)
  if (done?.type !== 'done') throw new Error('the last event is not done')
  const texts = events.slice(0, -1).flatMap((event) => (event.type === 'text' ? [event] : []))
  expect(texts).toHaveLength(events.length - 1)
  return { text: texts.map(({ text }) => text).join(''), texts, ...done }
}

/** Greedy decoding without any of the engine: all tokens in one step, then one by one. */
async function plainGreedy(prompt: number[], count: number): Promise<number[]> {
  const { manifest, store } = await tinyPack()
  const backend = await referenceBackend()({ manifest, store })
  const sequence = backend.open(prompt.length + count)
  const output: number[] = []
  for (let tokens = prompt; output.length < count; tokens = output.slice(-1)) {
    const logits = Array.from(await backend.step(sequence, Int32Array.from(tokens)))
    for (const token of ENDLESS.keys()) logits[token] = Number.NEGATIVE_INFINITY
    output.push(logits.indexOf(Math.max(...logits)))
  }
  return output
}

describe('generate', () => {
  it.each([1, 127, 128, 129, 230])(
    'continues a prompt of %i tokens as plain decoding does',
    async (length) => {
      const { engine, watch } = await tinyEngine()
      const tokens = Array.from({ length }, (_, i) => 3 + ((i * 7) % 200))
      const { text, texts, finishReason, usage } = await run(engine, request({ prompt: { tokens } }))
      expect(text).toBe(engine.detokenize(await plainGreedy(tokens, 20)))
      expect(finishReason).toBe('length')
      expect(usage).toMatchObject({ promptTokens: length, completionTokens: 20 })
      expect(usage.prefillMs + usage.decodeMs).toBeGreaterThan(0)
      expect(usage.experts.possible).toBe((length + 19) * 3 * 4)
      expect(usage.experts.activated).toBeGreaterThan(0)
      expect(texts.map((event) => event.tokens)).toEqual(
        texts.map((event) => event.tokens).toSorted((a, b) => a - b),
      )
      expect(watch.open.size).toBe(0)
    },
  )

  it('gives nothing but text before a control token, and ends with it', async () => {
    const { engine } = await tinyEngine()
    for (const token of [EOS, IM_END]) {
      const { texts, finishReason, usage } = await run(
        engine,
        request({}, { logitBias: new Map([[token, 100]]) }),
      )
      expect({ texts, finishReason }).toEqual({ texts: [], finishReason: 'stop' })
      expect(usage.completionTokens).toBe(1)
    }
  })

  it('ends where the context does', async () => {
    const { engine } = await tinyEngine({ pack: { context: 32 } })
    const tokens = Array(30).fill(9)
    const { finishReason, usage } = await run(engine, request({ prompt: { tokens }, maxTokens: 1000 }))
    expect({ finishReason, tokens: usage.completionTokens }).toEqual({ finishReason: 'length', tokens: 2 })
    expect(engine.context).toBe(32)
  })

  it('ends before a stop string, wherever in the text it comes', async () => {
    const { engine } = await tinyEngine()
    const { text } = await run(engine, request())
    for (let start = 0; start + 2 <= text.length; start++) {
      const stop = text.slice(start, start + 2)
      if (!stop.isWellFormed()) continue
      const stopped = await run(engine, request({ stop: ['never', stop] }))
      expect(stopped).toMatchObject({ text: text.slice(0, text.indexOf(stop)), finishReason: 'stop' })
    }
  })

  it('makes half a character at the end U+FFFD, and finds a stop string in it', async () => {
    const { engine } = await tinyEngine()
    // The first two bytes of an emoji, again and again.
    const [half] = engine.tokenize('😀')
    const sampling = { logitBias: new Map([[half, 100]]) }
    const whole = await run(engine, request({ maxTokens: 3 }, sampling))
    expect(whole).toMatchObject({ text: '\ufffd'.repeat(3), finishReason: 'length' })
    const stopped = await run(engine, request({ maxTokens: 3, stop: ['\ufffd\ufffd\ufffd'] }, sampling))
    expect(stopped).toMatchObject({ text: '', finishReason: 'stop' })
  })

  it('holds what may become a stop string back, and gives it in the end', async () => {
    const { engine } = await tinyEngine()
    const { text } = await run(engine, request())
    const held = await run(engine, request({ stop: [`${text}!`] }))
    expect(held).toMatchObject({ text, finishReason: 'length' })
    expect(held.texts).toHaveLength(1)
  })

  it('gives a chat what its tokens give', async () => {
    const { engine } = await tinyEngine()
    const messages = [{ role: 'user', content: 'hello <|im_end|>' }] as const
    const prompt = { messages }
    const chat = await run(engine, request({ prompt }))
    const tokens = engine.tokenize(
      '<|im_start|>system\nhello<|im_end|>\n<|im_start|>user\nhello @<|im_end|>\n<|im_start|>assistant\n',
    )
    const [at] = engine.tokenize('@')
    const ordinary = ['<', '|im_end|>'].flatMap((part) => engine.tokenize(part))
    const spliced = tokens.flatMap((token) => (token === at ? ordinary : [token]))
    expect(chat.usage.promptTokens).toBe(spliced.length)
    expect(engine.encode(prompt)).toEqual(spliced)
    expect((await run(engine, request({ prompt: { tokens: spliced } }))).text).toBe(chat.text)
  })

  it('says the same for the same seed, something else for another', async () => {
    const { engine } = await tinyEngine()
    const say = async (seed: number) => (await run(engine, request({}, { temperature: 1, seed }))).text
    expect(await say(1)).toBe(await say(1))
    expect(await say(1)).not.toBe(await say(2))
  })

  it.each<[string, Partial<GenerateRequest>, Partial<SamplingParams>]>([
    ['prompt_too_long', { prompt: { text: 'a!'.repeat(200) } }, {}],
    ['prompt_too_long', { prompt: { messages: [{ role: 'user', content: 'a!'.repeat(200) }] } }, {}],
    ['invalid_request', { prompt: { tokens: [] } }, {}],
    ['invalid_request', { stop: [''] }, {}],
    ['invalid_request', {}, { logitBias: new Map([[100_000, 1]]) }],
  ])('%s: %j', async (expected, fields, sampling) => {
    const { engine, watch } = await tinyEngine()
    await expect(run(engine, request(fields, sampling))).rejects.toThrow(code(expected))
    expect(watch).toMatchObject({ open: new Set(), steps: [] })
  })
})

describe('many at once', () => {
  const seeds = [1, 2, 3, 4, 5]
  const asked = (seed: number) =>
    request(
      { prompt: { text: 'user '.repeat(seed * 20) }, maxTokens: 10 + seed },
      { temperature: 1, seed, topP: 0.9 },
    )

  it('get what each gets alone', async () => {
    const { engine, watch } = await tinyEngine({ pack: { context: 512 } })
    const alone: string[] = []
    for (const seed of seeds) alone.push((await run(engine, asked(seed))).text)
    const together = await Promise.all(seeds.map((seed) => run(engine, asked(seed))))
    expect(together.map(({ text }) => text)).toEqual(alone)
    expect(watch.open.size).toBe(0)
  })

  it('take turns token by token', async () => {
    const { engine, watch } = await tinyEngine()
    await Promise.all(seeds.map(() => run(engine, request({ maxTokens: 8 }))))
    const order = watch.steps.map((sequence) => [...new Set(watch.steps)].indexOf(sequence))
    expect(order).toEqual(
      Array(8)
        .fill(seeds.map((_, i) => i))
        .flat(),
    )
  })

  it('a short one does not wait for a long prompt to be read whole', async () => {
    const { engine, watch } = await tinyEngine({ pack: { context: 2048 } })
    const long = run(engine, request({ prompt: { tokens: Array(1000).fill(5) }, maxTokens: 1 }))
    const short = run(engine, request({ maxTokens: 2 }))
    await Promise.all([long, short])
    const [first] = watch.steps
    expect(watch.steps.slice(0, 4).filter((sequence) => sequence !== first)).toHaveLength(2)
  })

  it('are refused beyond the queue, and let in again afterwards', async () => {
    const { engine, watch } = await tinyEngine({ queue: 2 })
    const two = [1, 2].map(() => run(engine, request()))
    await expect(run(engine, request())).rejects.toThrow(code('queue_full'))
    await Promise.all(two)
    await run(engine, request())
    expect(watch.open.size).toBe(0)
  })
})

describe('memory comes back', () => {
  it('when its consumer leaves', async () => {
    const { engine, watch } = await tinyEngine()
    for await (const event of engine.generate(request())) {
      expect(event.type).toBe('text')
      expect(watch.open.size).toBe(1)
      break
    }
    expect(watch.open.size).toBe(0)
  })

  it('before the last event, so that who is slow to take it holds nothing', async () => {
    const { engine, watch } = await tinyEngine()
    for await (const event of engine.generate(request()))
      expect(watch.open.size).toBe(event.type === 'done' ? 0 : 1)
  })

  it('when it is cancelled between steps, without waiting for its consumer', async () => {
    const { engine, watch } = await tinyEngine()
    const gone = new AbortController()
    const events = engine.generate(request(), gone.signal)
    await events.next()
    gone.abort()
    expect(watch.open.size).toBe(0)
    await expect(events.next()).rejects.toThrow(code('cancelled'))
    expect(watch.steps).toHaveLength(1)
  })

  it('when it is cancelled amid a step, once that has ended', async () => {
    const gone = new AbortController()
    const { engine, watch } = await tinyEngine({
      during: async (step) => {
        if (step !== 3) return
        gone.abort()
        await Promise.resolve()
        expect(watch.open.size).toBe(1)
      },
    })
    await expect(run(engine, request(), gone.signal)).rejects.toThrow(code('cancelled'))
    expect(watch.open.size).toBe(0)
    expect(watch.steps.length).toBeLessThanOrEqual(4)
  })

  it.each([1, 4])('when step %i fails, and the next request is served', async (failing) => {
    const failure = new SparsedgeError('shard_missing', 'gone', { layer: 1 })
    const { engine, watch } = await tinyEngine({
      during: (step) => {
        if (step === failing) throw failure
      },
    })
    await expect(run(engine, request())).rejects.toBe(failure)
    expect(watch.open.size).toBe(0)
    expect((await run(engine, request())).usage.completionTokens).toBe(20)
  })

  it('is never taken by a request that nobody asks an event of', async () => {
    const { engine, watch } = await tinyEngine()
    await engine.generate(request()).return()
    expect(watch).toMatchObject({ open: new Set(), steps: [] })
  })

  it('is never taken by a request that was cancelled before', async () => {
    const { engine, watch } = await tinyEngine()
    await expect(run(engine, request(), AbortSignal.abort())).rejects.toThrow(code('cancelled'))
    expect(watch).toMatchObject({ open: new Set(), steps: [] })
  })
})

describe('createEngine', () => {
  const backend = referenceBackend()
  const load = (store: ShardStore, options: Partial<EngineOptions> = {}) =>
    createEngine({ store, model: 'tiny', backend, ...options })

  it('tells what was loaded', async () => {
    const { store, manifest } = await tinyPack()
    const engine = await load(store)
    expect(engine).toMatchObject({ manifest, backend: 'reference', context: 256 })
    expect(engine.detokenize(engine.tokenize('hello <|im_end|> \ud800'))).toBe('hello <|im_end|> \ufffd')
    expect(engine.detokenize([-1, 0.5, 100_000])).toBe('')
  })

  it('verifies every shard itself', async () => {
    const { store, manifest } = await tinyPack()
    for (const hash of [
      manifest.text.tokenizer.hash,
      manifest.text.chatTemplate?.hash ?? '',
      manifest.trunk.shards[0].hash,
    ]) {
      const bytes = store.objects.get(shardKey(hash))
      if (!bytes) throw new Error('no such shard')
      bytes[bytes.length >> 1] ^= 1
      const failure = code('shard_hash_mismatch')
      await expect(load(store)).rejects.toThrow(failure)
      await expect(load(store)).rejects.toMatchObject({ place: { model: 'tiny', shard: hash } })
      bytes[bytes.length >> 1] ^= 1
    }
    await load(store)
  })

  it('serves a model without a chat template, but no chats', async () => {
    const { store, manifest } = await tinyPack()
    const { chatTemplate: _, ...text } = manifest.text
    store.putManifest('tiny', new TextEncoder().encode(JSON.stringify({ ...manifest, text })))
    const engine = await load(store)
    expect((await run(engine, request())).usage.completionTokens).toBe(20)
    const prompt = { messages: [{ role: 'user', content: 'hi' }] } as const
    await expect(run(engine, request({ prompt }))).rejects.toThrow(code('invalid_request'))
  })

  it.each<[string, string, (text: { tokenizer: object; chatTemplate: object }) => object]>([
    [
      'a tokenizer beyond reason',
      'manifest_malformed',
      (text) => ({ tokenizer: { ...text.tokenizer, bytes: 1e12 } }),
    ],
    [
      'a template beyond reason',
      'manifest_malformed',
      (text) => ({ chatTemplate: { ...text.chatTemplate, bytes: 1e9 } }),
    ],
    [
      'a tokenizer that is shorter',
      'shard_too_short',
      (text) => ({ tokenizer: { ...text.tokenizer, bytes: 1e5 } }),
    ],
    ['a template as its tokenizer', 'manifest_malformed', (text) => ({ tokenizer: text.chatTemplate })],
    [
      'no such shard',
      'shard_missing',
      (text) => ({ tokenizer: { ...text.tokenizer, hash: 'ab'.repeat(32) } }),
    ],
  ])('refuses %s: %s', async (_, expected, change) => {
    const { store, manifest } = await tinyPack()
    const { tokenizer, chatTemplate = {} } = manifest.text
    const text = { tokenizer, chatTemplate, ...change({ tokenizer, chatTemplate }) }
    store.putManifest('tiny', new TextEncoder().encode(JSON.stringify({ ...manifest, text })))
    await expect(load(store)).rejects.toThrow(code(expected))
  })

  it('passes on what the store says', async () => {
    const { store } = await tinyPack()
    await expect(load(store, { model: 'other' })).rejects.toThrow(code('unknown_model'))
    await expect(load(store, { signal: AbortSignal.abort() })).rejects.toThrow(code('cancelled'))
    store.putManifest('tiny', new TextEncoder().encode('{}'))
    await expect(load(store)).rejects.toThrow(code('manifest_malformed'))
  })

  it('refuses a model under another name than its own', async () => {
    const { store, manifest } = await tinyPack({ name: 'other' })
    store.putManifest('tiny', new TextEncoder().encode(JSON.stringify(manifest)))
    const refused = load(store)
    await expect(refused).rejects.toThrow(/that of "other"/)
    await expect(refused).rejects.toMatchObject({ code: 'manifest_malformed', place: { model: 'tiny' } })
    await load(store, { model: 'other' })
  })

  it.each(['manifest', 'tokenizer', 'trunk'])(
    'fails where the store stalls over its %s, and can be tried again',
    async (part) => {
      vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'performance'] })
      onTestFinished(() => void vi.useRealTimers())
      const { store, manifest } = await tinyPack()
      const stalls = { tokenizer: manifest.text.tokenizer.hash, trunk: manifest.trunk.shards[0].hash }[part]
      const stalling = Promise.withResolvers<void>()
      const stall = (signal?: AbortSignal) =>
        new Promise<never>((_, reject) => {
          signal?.addEventListener('abort', () => reject(new Error('stopped')))
          stalling.resolve()
        })
      const loading = load({
        read: (hash, into, signal) => (hash === stalls ? stall(signal) : store.read(hash, into, signal)),
        manifest: (model, signal) => (part === 'manifest' ? stall(signal) : store.manifest(model, signal)),
      })
      const failed = expect(loading).rejects.toThrow(code('store_unavailable'))
      await stalling.promise
      await vi.advanceTimersByTimeAsync(60_000)
      await failed
      vi.useRealTimers()
      await load(store)
    },
  )

  it('stops loading the one half when the other has failed', async () => {
    const { store, manifest } = await tinyPack()
    store.objects.delete(shardKey(manifest.text.tokenizer.hash))
    const { promise, resolve } = Promise.withResolvers<void>()
    const waiting: BackendFactory = (_, signal) =>
      new Promise((_, reject) => {
        signal?.addEventListener('abort', () => {
          resolve()
          reject(signal.reason)
        })
      })
    await expect(load(store, { backend: waiting })).rejects.toThrow(code('shard_missing'))
    await promise
  })
})
