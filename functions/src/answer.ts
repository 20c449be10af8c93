/**
 * @module
 * From generation requests to an HTTP answer, whole or streamed. Both endpoints end here; what differs between them is a
 * {@link Format}.
 */
import { abortable } from '@sparsedge/engine/abortable'
import type { FinishReason, GenerateRequest, GenerateUsage } from '@sparsedge/engine/request'
import type { Context } from 'hono'
import { streamSSE } from 'hono/streaming'
import { type ChoiceEvent, generate } from './generation.ts'
import { describe } from './middleware/errors.ts'
import type { CommonBody } from './schema.ts'
import type { Service } from './service.ts'
import { phasesOf, serverTiming, timingsOf, usageOf } from './usage.ts'

/** How long a failed stream waits for its client to take the error. */
const LAST_WORD_MS = 5000

/** How an endpoint words its answer. */
export interface Format {
  readonly idPrefix: string
  readonly object: string
  readonly chunkObject: string
  choice(index: number, text: string, finishReason: FinishReason): object
  /** What a stream sends before a choice's first text, if anything. */
  opening?(index: number): object
  /** Text of a stream, or, with a reason and no text, a choice's end. */
  delta(index: number, text: string, finishReason: FinishReason | null): object
}

export interface Job {
  readonly body: CommonBody
  /** One per choice of the answer. */
  readonly requests: readonly GenerateRequest[]
  readonly format: Format
}

/** A generation under way, with its first event. */
interface Running {
  readonly first: IteratorResult<ChoiceEvent>
  readonly events: AsyncGenerator<ChoiceEvent>
  /** What every body of the answer starts with. */
  readonly head: { readonly id: string; readonly created: number; readonly model: string }
  readonly format: Format
  /** Whether the cost in experts is told layer by layer. */
  readonly byLayer: boolean
}

/**
 * Answers a job. The response begins only when the first event is there, so that whatever fails by then (a prompt that
 * is too long, a full queue, a missing shard) still gets its status.
 *
 * Decoding ends at the next token when the client goes away, when it cancels the stream, or at the time limit.
 *
 * @throws ApiError, SparsedgeError before the response begins; afterwards a stream tells the error as its last event.
 */
export async function answer(
  c: Context,
  service: Service,
  { body, requests, format }: Job,
): Promise<Response> {
  const { name, engine, warmUp } = service.model(body.model)
  const head = {
    id: format.idPrefix + crypto.randomUUID().replaceAll('-', ''),
    created: Math.floor(Date.now() / 1000),
    model: name,
  }
  const gone = new AbortController()
  const signal = AbortSignal.any([c.req.raw.signal, gone.signal])
  const arrived = performance.now()
  let loaded = arrived
  // Others wait for the load that this request may have started, and for the end of every step.
  const loading = service.keepAlive(
    engine.get().then((ready) => {
      loaded = performance.now()
      return ready
    }),
  )
  const events = generate(loading, requests, service.limits, signal)
  const first = await service.keepAlive(events.next())
  const running = { first, events, head, format, byLayer: body.experts?.report === 'layers' }
  const load = loaded - arrived
  if (!body.stream) {
    const { choices, usages } = await service.keepAlive(whole(running))
    warmUp()
    c.header('Server-Timing', serverTiming({ load, ...phasesOf(usages) }))
    return c.json({ ...head, object: format.object, choices, ...costOf(running, usages) })
  }

  c.header('Server-Timing', serverTiming({ load, first: performance.now() - loaded }))
  // Proxies must pass every event on at once.
  c.header('X-Accel-Buffering', 'no')
  return streamSSE(c, async (stream) => {
    stream.onAbort(() => gone.abort())
    const send = (data: string) => stream.writeSSE({ data })
    const usage = body.stream_options?.include_usage === true
    await service.keepAlive(streamed(running, send, signal, usage, c.get('requestId')))
    warmUp()
  })
}

/** What every body that tells the cost of an answer has. */
function costOf({ byLayer }: Running, usages: readonly GenerateUsage[]) {
  return { usage: usageOf(usages, byLayer), timings: timingsOf(usages) }
}

/** All choices of the answer. */
async function whole({ first, events, format }: Running) {
  const choices: object[] = []
  const usages: GenerateUsage[] = []
  let text = ''
  for (let next = first; !next.done; next = await events.next()) {
    const event = next.value
    if (event.type === 'text') text += event.text
    else {
      choices.push(format.choice(event.choice, text, event.finishReason))
      usages.push(event.usage)
      text = ''
    }
  }
  return { choices, usages }
}

/** The answer as a stream of chunks, each sent as one event. */
async function streamed(
  running: Running,
  send: (data: string) => Promise<void>,
  signal: AbortSignal,
  includeUsage: boolean,
  requestId: string,
): Promise<void> {
  const { first, events, head, format } = running
  const usages: GenerateUsage[] = []
  // A client that does not read holds up `send`; it must not hold up the end of its own request.
  const chunk = (choices: object[], usage: object = includeUsage ? { usage: null } : {}) =>
    abortable(send(JSON.stringify({ ...head, object: format.chunkObject, choices, ...usage })), signal)
  try {
    let opened = -1
    for (let next = first; !next.done; next = await events.next()) {
      const event = next.value
      if (event.choice > opened && format.opening) await chunk([format.opening(event.choice)])
      opened = event.choice
      if (event.type === 'text') await chunk([format.delta(event.choice, event.text, null)])
      else {
        usages.push(event.usage)
        await chunk([format.delta(event.choice, '', event.finishReason)])
      }
    }
    if (includeUsage) await chunk([], costOf(running, usages))
    await send('[DONE]')
  } catch (error) {
    // Frees the sequence before anything else is awaited.
    await events.return(undefined)
    // A client that has not read so far may never read this.
    const patience = AbortSignal.timeout(LAST_WORD_MS)
    await abortable(send(JSON.stringify(describe(error, requestId).body)), patience).catch(() => {})
  }
}
