/**
 * @module
 * A model that can be asked: its pack, its text and its backend put together, shared by all requests.
 */
import type { BackendName } from '#backends'
import type { BackendFactory } from './backends/backend.ts'
import { SparsedgeError } from './errors.ts'
import { generate, type Model } from './generate.ts'
import { type Manifest, parseManifest, type ShardRef } from './pack/manifest.ts'
import type { GenerateEvent, GenerateRequest, Prompt } from './request.ts'
import type { ResidencySnapshot, WarmUp, WarmUpLimits } from './residency/residency.ts'
import { SamplingScratch } from './sampling/scratch.ts'
import { Admission, Turns } from './schedule.ts'
import { withDeadline } from './store/deadline.ts'
import type { ShardStore } from './store/store.ts'
import { verified } from './store/verified.ts'
import { ChatTemplate } from './text/chat-template.ts'
import { encodePrompt, type ModelText } from './text/prompt.ts'
import { createTokenizer } from './text/tokenizer.ts'

/** Requests that an engine takes at once unless told otherwise. */
const DEFAULT_QUEUE = 16
/** Where one read in ten fails, one in 100,000 fails for good. */
const READ_ATTEMPTS = 5

export interface EngineOptions {
  /** Where the pack is. Every shard is verified before its first use, and a read that stalls is given up; the store need
   * do neither. */
  readonly store: ShardStore
  /** The name of the pack. */
  readonly model: string
  /** A factory, or a name: `wasm`, `webgpu`, or `auto` for the faster of them here. Names are not for Workers. */
  readonly backend: BackendFactory | BackendName
  /** Requests that may be here at once, running or waiting for memory; one more is refused with `queue_full`. */
  readonly queue?: number
  /** Stops the loading. */
  readonly signal?: AbortSignal
}

/** Made by {@link createEngine}. */
export class Engine {
  readonly manifest: Manifest
  readonly #model: Model

  constructor(manifest: Manifest, model: Model) {
    this.manifest = manifest
    this.#model = model
  }

  /** The backend's name, with the variant it chose. */
  get backend(): string {
    return this.#model.backend.name
  }

  /** Tokens of the longest sequence, prompt and answer together, on this machine. */
  get context(): number {
    return this.#model.backend.config.context
  }

  /**
   * Continues a prompt: text as it becomes certain, then one `done`. Requests may run at the same time; each gets what it
   * would get alone. Nothing happens before the first event is asked for, and errors come with it, so ask for one before
   * you promise an answer to anyone.
   *
   * A consumer that stops early calls `return()` (a `for await` that is left does) or fires the signal; either gives the
   * memory back.
   *
   * @throws SparsedgeError `prompt_too_long`, `invalid_request`, `queue_full`, `cancelled`; as {@link ShardStore.read}
   * does where an expert cannot be had; `logits_not_finite`
   * @example
   * for await (const event of engine.generate({ prompt: { text: 'Once' }, maxTokens: 32, sampling, stop: [] })) {
   *   if (event.type === 'text') process.stdout.write(event.text)
   * }
   */
  generate(request: GenerateRequest, signal?: AbortSignal): AsyncGenerator<GenerateEvent, void, undefined> {
    return generate(this.#model, request, signal)
  }

  /**
   * A prompt as the ids that the model continues, the chat template's own included. `{ tokens }` of them is the same
   * prompt: whoever wants to know its length before the answer begins need not have it encoded twice.
   *
   * @throws SparsedgeError as {@link Engine.generate} does for the prompt
   */
  encode(prompt: Prompt): number[] {
    const { vocab, context } = this.#model.backend.config
    return encodePrompt(this.#model.text, prompt, vocab, context)
  }

  /** Which experts are in memory, and how often each was used lately. */
  experts(): ResidencySnapshot {
    const { layers, experts } = this.manifest.config
    const all = layers * experts
    return (
      this.#model.backend.residency?.snapshot() ?? {
        layers,
        experts,
        expertBytes: this.manifest.experts.bytes,
        capacity: all,
        resident: all,
        isResident: new Uint8Array(all).fill(1),
        frequency: new Float32Array(all),
      }
    )
  }

  /**
   * Fetches experts that requests are likely to need, until memory is full or a limit is reached, behind whatever requests
   * fetch themselves. On Workers it belongs to the request that called it: pass its promise to `waitUntil`.
   *
   * @throws SparsedgeError as {@link ShardStore.read} does; `cancelled`
   */
  async prewarm(limits: WarmUpLimits = {}, signal?: AbortSignal): Promise<WarmUp> {
    const { residency } = this.#model.backend
    return residency ? residency.prewarm(limits, signal) : { loaded: 0, bytes: 0, requests: 0 }
  }

  /** The ids of a text; control tokens in it (`<|im_end|>`) are read as such. */
  tokenize(text: string): number[] {
    return this.#model.text.tokenizer.encode(text.toWellFormed())
  }

  /** The text of ids, control tokens included. Ids that do not exist have no text. */
  detokenize(tokens: readonly number[]): string {
    return this.#model.text.tokenizer.decode(tokens)
  }
}

/**
 * Loads a model: its manifest, then its text and its trunk at the same time. Experts come when a gate picks them.
 *
 * @throws SparsedgeError `unknown_model`, `manifest_malformed`, `manifest_version`, as {@link ShardStore.read} and the
 * {@link BackendFactory} do
 * @example
 * const engine = await createEngine({ store: fsStore('./bucket'), model: 'smollm2', backend: referenceBackend() })
 */
export async function createEngine({
  store,
  model: name,
  backend,
  queue = DEFAULT_QUEUE,
  signal,
}: EngineOptions): Promise<Engine> {
  const trusted = verified(withDeadline(store), READ_ATTEMPTS)
  const failed = new AbortController()
  const stop = signal ? AbortSignal.any([signal, failed.signal]) : failed.signal
  try {
    const manifest = parseManifest(await trusted.manifest(name, stop))
    // One answers to one name only: under another it would be listed and logged as what it is not.
    if (manifest.name !== name) {
      const message = `the manifest under this name is that of "${manifest.name}"; publish each under its own`
      throw new SparsedgeError('manifest_malformed', message)
    }
    const createBackend = typeof backend === 'string' ? await named(backend) : backend
    const [text, created] = await Promise.all([
      loadText(manifest, trusted, stop),
      createBackend({ manifest, store: trusted }, stop),
    ])
    const scratch = new SamplingScratch(manifest.config.vocab)
    return new Engine(manifest, {
      backend: created,
      text,
      scratch,
      admission: new Admission(queue),
      turns: new Turns(),
    })
  } catch (cause) {
    // What is still being loaded is of no use any more.
    failed.abort()
    throw cause instanceof SparsedgeError ? cause.at({ model: name }) : cause
  }
}

/** Loaded only where a name is used: a bundle with factories alone holds no backend but theirs. */
async function named(name: BackendName): Promise<BackendFactory> {
  const { namedBackend } = await import('#backends')
  return namedBackend(name)
}

async function loadText(
  { text, config }: Manifest,
  store: ShardStore,
  signal: AbortSignal,
): Promise<ModelText> {
  const [json, jinja] = await Promise.all([
    readText(text.tokenizer, store, signal),
    text.chatTemplate && readText(text.chatTemplate, store, signal),
  ])
  const tokenizer = createTokenizer(json, config.vocab)
  return {
    tokenizer,
    template: jinja && new ChatTemplate(new TextDecoder().decode(jinja), tokenizer, config),
  }
}

async function readText(
  { hash, bytes }: ShardRef,
  store: ShardStore,
  signal: AbortSignal,
): Promise<Uint8Array> {
  const into = new Uint8Array(bytes)
  await store.read(hash, [{ hash, bytes: into }], signal)
  return into
}
