/**
 * @module
 * For tests: the real application over the real engine and a tiny pack, with a watch on what the backend does.
 */
import { createEngine } from '@sparsedge/engine'
import type { BackendFactory } from '@sparsedge/engine/backends/backend'
import { SparsedgeError } from '@sparsedge/engine/errors'
import { referenceBackend } from '@sparsedge/engine/reference'
import type { ShardStore } from '@sparsedge/engine/store/store'
import { z } from 'zod'
import { type TinyPackOptions, tinyPack } from '../../test/fixtures/tiny.ts'
import { EOS, IM_END } from '../../test/fixtures/tiny-tokenizer.ts'
import { type AppOptions, createApp } from './app.ts'

/** Added to a request, the random model never ends by itself. */
export const NEVER_ENDS = { logit_bias: { [EOS]: -100, [IM_END]: -100 } }

export interface Watch {
  steps: number
  /** Sequences opened and not yet closed. */
  open: number
  /** Resolves when a step is being held. */
  readonly held: Promise<void>
}

interface Interference {
  /** From this step on, each waits until its request is cancelled. */
  readonly holdFrom?: number | undefined
  /** This step fails as if its expert were damaged. */
  readonly failAt?: number | undefined
}

/** The backend itself, counted and, where asked, interfered with. */
function watched(factory: BackendFactory, { holdFrom, failAt }: Interference) {
  let reached = () => {}
  const held = new Promise<void>((resolve) => {
    reached = resolve
  })
  const watch: Watch = { steps: 0, open: 0, held }
  const watching: BackendFactory = async (pack, signal) => {
    const backend = await factory(pack, signal)
    return {
      name: backend.name,
      config: backend.config,
      ...(backend.residency && { residency: backend.residency }),
      open(capacity, experts) {
        const sequence = backend.open(capacity, experts)
        watch.open++
        const close = sequence.close.bind(sequence)
        let closed = false
        sequence.close = () => {
          if (!closed) watch.open--
          closed = true
          close()
        }
        return sequence
      },
      async step(sequence, tokens, signal) {
        watch.steps++
        if (watch.steps === failAt) {
          throw new SparsedgeError('shard_hash_mismatch', `shard ${'ab'.repeat(32)} is damaged`, {
            layer: 1,
            expert: 2,
          })
        }
        if (holdFrom !== undefined && watch.steps >= holdFrom && signal) {
          reached()
          await new Promise<void>((resolve) => {
            if (signal.aborted) resolve()
            else signal.addEventListener('abort', () => resolve(), { once: true })
          })
        }
        return backend.step(sequence, tokens, signal)
      },
    }
  }
  return { watch, factory: watching }
}

export interface TinyAppOptions extends Partial<Omit<AppOptions, 'models'>>, Interference {
  readonly pack?: TinyPackOptions
  /** The reference backend, unless given. */
  readonly backend?: BackendFactory
  /** Puts something between the engine and the pack's store. */
  readonly store?: (store: ShardStore) => ShardStore
  readonly queue?: number
}

/** The application with one model, `tiny`. */
export async function tinyApp({
  pack,
  backend = referenceBackend(),
  store,
  holdFrom,
  failAt,
  queue,
  ...options
}: TinyAppOptions = {}) {
  const { store: packed } = await tinyPack(pack)
  const { watch, factory } = watched(backend, { holdFrom, failAt })
  const app = createApp({
    page: '<!doctype html><script nonce="%NONCE%"></script>',
    models: {
      tiny: () =>
        createEngine({
          store: store?.(packed) ?? packed,
          model: 'tiny',
          backend: factory,
          ...(queue !== undefined && { queue }),
        }),
    },
    ...options,
  })
  const post = (path: string, body: unknown, init: RequestInit = {}) =>
    app.request(path, {
      method: 'POST',
      body: typeof body === 'string' ? body : JSON.stringify(body),
      ...init,
      headers: { 'Content-Type': 'application/json', ...init.headers },
    })
  return { app, post, watch }
}

/** The data of a stream, event by event; the last is `[DONE]` or an error. */
export async function eventsOf(response: Response): Promise<string[]> {
  const events = (await response.text()).split('\n\n')
  if (events.pop() !== '') throw new Error('the stream does not end with an event')
  return events.map((event) => {
    if (!/^data: [^\n]*$/.test(event)) throw new Error(`not an event with one line of data: ${event}`)
    return event.slice('data: '.length)
  })
}

const Usage = z.looseObject({
  prompt_tokens: z.int(),
  completion_tokens: z.int(),
  total_tokens: z.int(),
  experts: z.looseObject({
    activated: z.number(),
    active_share: z.number(),
    fidelity: z.number(),
    hits: z.number(),
    misses: z.number(),
    wait_ms: z.number(),
    tiers: z.record(z.string(), z.object({ requests: z.number(), bytes: z.number() })),
    layers: z
      .array(z.object({ activated: z.number(), hits: z.number(), misses: z.number(), wait_ms: z.number() }))
      .optional(),
  }),
})
const Choice = z.looseObject({
  index: z.int(),
  text: z.string().optional(),
  message: z.looseObject({ content: z.string() }).optional(),
  delta: z.looseObject({ role: z.string().optional(), content: z.string().optional() }).optional(),
  finish_reason: z.string().nullable(),
})
const Answer = z.looseObject({
  id: z.string(),
  object: z.string(),
  choices: z.array(Choice),
  usage: Usage.nullish(),
})

/** An answer's body, or a stream's chunk, parsed as far as tests look into it. */
export const parseAnswer = (json: unknown) => Answer.parse(json)

/** The text of one whole answer, its end and its bill. */
export async function answerOf(response: Response) {
  const { choices, usage } = parseAnswer(await response.json())
  return {
    text: choices[0].message?.content ?? choices[0].text,
    finishReason: choices[0].finish_reason,
    choices,
    usage: Usage.parse(usage),
  }
}

/** The chunks of a stream that ended well. */
export async function chunksOf(response: Response) {
  const events = await eventsOf(response)
  if (events.pop() !== '[DONE]') throw new Error('the stream did not end with [DONE]')
  return events.map((data) => parseAnswer(JSON.parse(data)))
}

/** All text of a stream that ended well. */
export async function streamedText(response: Response): Promise<string> {
  const choices = (await chunksOf(response)).flatMap((chunk) => chunk.choices)
  return choices.map(({ delta, text }) => delta?.content ?? text ?? '').join('')
}
