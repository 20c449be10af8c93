/**
 * @module
 * How an answer is made: prompt → token ids → one step for all of them → a token; then text, a check whether that was the
 * end, and a step for the next token, again and again.
 */
import type { Backend, Logits } from './backends/backend.ts'
import type { FinishReason, GenerateEvent, GenerateRequest } from './request.ts'
import { Sampler } from './sampling/sampler.ts'
import type { SamplingScratch } from './sampling/scratch.ts'
import type { Admission, Turns } from './schedule.ts'
import { encodePrompt, type ModelText } from './text/prompt.ts'
import { StopMatcher } from './text/stop.ts'

/** Prompt tokens a step, where the backend wishes for no other number. More would keep others waiting and a cancelled
 * request running; fewer would read every weight more often. The logits are the same. */
const PREFILL_TOKENS = 128

/** A model ready to run, shared by all requests. */
export interface Model {
  readonly backend: Backend
  readonly text: ModelText
  readonly admission: Admission
  readonly turns: Turns
  readonly scratch: SamplingScratch
}

/**
 * Continues a prompt. Nothing is computed before the first event is asked for, and whatever ends the generation (its
 * consumer, an error, the signal) gives its memory back.
 *
 * @throws SparsedgeError `cancelled`, `queue_full`, as {@link encodePrompt} and {@link Backend.step} do
 */
export async function* generate(
  { backend, text, admission, turns, scratch }: Model,
  request: GenerateRequest,
  signal?: AbortSignal,
): AsyncGenerator<GenerateEvent, void, undefined> {
  const { vocab, context, eosTokens } = backend.config
  const prompt = encodePrompt(text, request.prompt, vocab, context)
  const limit = Math.min(request.maxTokens, context - prompt.length)
  const sampler = new Sampler(request.sampling, prompt, scratch)
  const detokenizer = text.tokenizer.detokenizer(false)
  const stop = new StopMatcher(request.stop)

  const asked = performance.now()
  const sequence = await admission.enter(() => backend.open(prompt.length + limit, request.experts), signal)
  const started = performance.now()
  let prefilled = started
  let generated = 0
  let finishReason: FinishReason = 'length'
  let stepping = false
  // A consumer that has stopped asking for events must not keep its memory beyond the signal.
  const release = () => {
    if (!stepping) admission.leave(sequence)
  }
  signal?.addEventListener('abort', release)
  try {
    const ids = Int32Array.from(prompt)
    let tokens = ids
    const step = (): Logits | Promise<Logits> => {
      stepping = true
      return backend.step(sequence, tokens, signal)
    }
    const next = (logits: Logits): number => {
      stepping = false
      return sampler.next(logits, backend.runs)
    }
    // Logits are the backend's own memory, so the token is chosen before anyone else's step.
    const choose = (): number | Promise<number> => {
      const logits = step()
      return logits instanceof Promise ? logits.then(next) : next(logits)
    }

    let start = 0
    const chunk = backend.prefillTokens ?? PREFILL_TOKENS
    for (; start + chunk < ids.length; start += chunk) {
      tokens = ids.subarray(start, start + chunk)
      await turns.take(tokens.length, step, signal)
      stepping = false
    }
    tokens = ids.subarray(start)
    let token = await turns.take(tokens.length, choose, signal)
    prefilled = performance.now()

    const last = new Int32Array(1)
    tokens = last
    let stopped = false
    for (;;) {
      generated++
      if (eosTokens.includes(token)) {
        finishReason = 'stop'
        break
      }
      const certain = stop.push(detokenizer.push(token))
      if (certain.text !== '') yield { type: 'text', text: certain.text, tokens: generated }
      stopped = certain.stopped
      if (stopped || generated === limit) break
      last[0] = token
      token = await turns.take(tokens.length, choose, signal)
    }

    if (!stopped) {
      // Nothing follows, so what was held back is certain now.
      const tail = stop.push(detokenizer.end())
      stopped = tail.stopped
      const rest = stopped ? tail.text : tail.text + stop.end()
      if (rest !== '') yield { type: 'text', text: rest, tokens: generated }
    }
    if (stopped) finishReason = 'stop'
  } finally {
    signal?.removeEventListener('abort', release)
    admission.leave(sequence)
  }
  yield {
    type: 'done',
    finishReason,
    usage: {
      promptTokens: prompt.length,
      completionTokens: generated,
      experts: sequence.usage,
      queueMs: started - asked,
      prefillMs: prefilled - started,
      decodeMs: performance.now() - prefilled,
    },
  }
}
