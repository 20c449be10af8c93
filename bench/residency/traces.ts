/**
 * @module
 * Real traces: which experts each layer's gate selected, step by step, while the shipped model read texts token by token
 * and answered chats.
 */
import { readFile } from 'node:fs/promises'
import { createEngine, GREEDY } from '@sparsedge/engine'
import type { ArenaResidency } from '@sparsedge/engine/residency/arena'
import type { Routing } from '@sparsedge/engine/residency/residency'
import { z } from 'zod'
import { packTokenizer } from '../../test/parity/shipped.ts'
import { ALL, backendWith, config, openBackend, pack } from './backend.ts'

/** What the gates of each layer chose in one step of the model. */
export type Step = readonly Readonly<Routing>[]

export interface Trace {
  readonly name: string
  /** A prompt's steps, then those of single tokens. */
  readonly prompt: readonly Step[]
  readonly decode: readonly Step[]
}

const QUESTIONS = [
  'Tell me about the history of the bicycle.',
  'Write a short story about a fox and a river.',
  'Write a Python function that reverses a list.',
  'Plan a week of training for a 5 km run.',
]
/** As people ask it: neither greedy nor wild. */
const SAMPLED = { ...GREEDY, temperature: 0.7, topP: 0.95, repetitionPenalty: 1.1 }
const NEVER_ENDS = new Map(config.eosTokens.map((token) => [token, -100]))
/** Tokens of a text that are read as a prompt. */
const PREFIX = 32

const Texts = z.array(z.object({ name: z.string(), text: z.string() }))
const tokenizer = await packTokenizer(pack)

export interface Text {
  readonly name: string
  readonly ids: Int32Array
}

/** The texts of the parity tests. */
export async function texts(): Promise<Text[]> {
  const file = new URL('../../test/goldens/texts.json', import.meta.url)
  const parsed = Texts.parse(JSON.parse(await readFile(file, 'utf8')))
  return parsed.map(({ name, text }) => ({ name, ids: Int32Array.from(tokenizer.encode(text)) }))
}

/** `length` token ids of all texts end to end. */
export async function promptOf(length: number): Promise<Int32Array> {
  const ids = (await texts()).flatMap(({ ids }) => [...ids])
  return Int32Array.from({ length }, (_, i) => ids[i % ids.length])
}

/** @param tokens of each answer */
export async function recordTraces(tokens: number): Promise<Trace[]> {
  const recorder = new Recorder()
  const traces: Trace[] = []
  const engine = await createEngine({
    store: pack.store,
    model: pack.manifest.name,
    backend: backendWith(ALL, recorder.tap),
  })
  for (const [seed, content] of QUESTIONS.entries()) {
    const sampling = { ...SAMPLED, seed, logitBias: NEVER_ENDS }
    const prompt = { messages: [{ role: 'user' as const, content }] }
    for await (const _ of engine.generate({ prompt, maxTokens: tokens, sampling, stop: [] }));
    traces.push(recorder.take(`chat: ${content}`, 1))
  }
  const backend = await openBackend(ALL, pack.store, recorder.tap)
  for (const { name, ids } of await texts()) {
    const sequence = backend.open(ids.length)
    await backend.step(sequence, ids.subarray(0, PREFIX))
    for (let i = PREFIX; i < Math.min(ids.length, PREFIX + tokens); i++) {
      await backend.step(sequence, ids.subarray(i, i + 1))
    }
    sequence.close()
    traces.push(recorder.take(`text: ${name}`, 1))
  }
  // An isolate lives longer than a chat.
  const chats = traces.slice(0, QUESTIONS.length)
  const [first, ...rest] = chats.flatMap(({ prompt, decode }) => [...prompt, ...decode])
  traces.push({ name: 'all chats in a row', prompt: [first], decode: rest })
  return traces
}

/** Experts that a prompt selects, all layers together. */
export async function routedBy(prompt: Int32Array): Promise<number> {
  const recorder = new Recorder()
  const backend = await openBackend(ALL, pack.store, recorder.tap)
  const sequence = backend.open(prompt.length)
  await backend.step(sequence, prompt)
  sequence.close()
  const seen = new Set<number>()
  for (const step of recorder.take('', Number.POSITIVE_INFINITY).prompt) {
    for (const [layer, { routed }] of step.entries()) {
      for (const expert of routed) seen.add(layer * config.experts + expert)
    }
  }
  return seen.size
}

/** Notes what steps ask of a residency. */
class Recorder {
  #steps: Routing[][] = []

  readonly tap = (inner: ArenaResidency): ArenaResidency => ({
    get resident() {
      return inner.resident
    },
    capacity: inner.capacity,
    slots: inner.slots,
    acquire: (layer, routing, account, signal) => {
      if (layer === 0) this.#steps.push([])
      const { routed, uses, count, tokens } = routing
      this.#steps.at(-1)?.push({ routed: routed.slice(0, count), uses: uses.slice(0, count), count, tokens })
      return inner.acquire(layer, routing, account, signal)
    },
    release: (layer) => inner.release(layer),
    prefetch: (...args) => inner.prefetch(...args),
    anticipate: (...args) => inner.anticipate(...args),
    snapshot: () => inner.snapshot(),
    prewarm: (...args) => inner.prewarm(...args),
  })

  /** What was noted since the last call; the first `prompt` steps are the prompt's. */
  take(name: string, prompt: number): Trace {
    const steps = this.#steps
    this.#steps = []
    return { name, prompt: steps.slice(0, prompt), decode: steps.slice(prompt) }
  }
}
