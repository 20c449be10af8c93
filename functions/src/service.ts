/**
 * @module
 * What the routes serve: models, each with an engine that is built when the first request needs it, and the limits that
 * every request is held to.
 */
import type { Engine } from '@sparsedge/engine'
import { ApiError } from './middleware/errors.ts'
import { type Once, once } from './once.ts'

export interface Limits {
  /** Bytes of a request's body. */
  readonly bodyBytes: number
  /** Tokens of a prompt, the chat template's own included. */
  readonly promptTokens: number
  /** Tokens of an answer; what asks for more gets this many. */
  readonly completionTokens: number
  /** Prompts in one request to `/v1/completions`. */
  readonly prompts: number
  /** Seconds from a request's arrival to the end of its answer. */
  readonly seconds: number
  /** Fetches of experts for one answer, of all its prompts, or for one warm-up; absent: as many as it takes. */
  readonly expertFetches?: number
  /** Bytes of experts that are fetched ahead once a model has given its first answer; 0: none. */
  readonly warmUpBytes: number
}

export const DEFAULT_LIMITS: Limits = {
  bodyBytes: 256 * 1024,
  promptTokens: 4096,
  completionTokens: 1024,
  prompts: 16,
  seconds: 300,
  warmUpBytes: 48 << 20,
}

export interface ServedModel {
  readonly name: string
  readonly engine: Once<Engine>
  /** Fetches experts that the next requests may need, behind theirs. Only the first call does. */
  warmUp(): void
}

export interface ServiceOptions {
  /** Name → what builds its engine. At least one; the first answers requests that name none. */
  readonly models: Readonly<Record<string, () => Promise<Engine>>>
  readonly limits?: Partial<Limits>
  /** Lets a promise finish though the client has gone (`waitUntil` on Workers, where a request's work otherwise ends with
   * it, halfway through a step that others wait for). */
  readonly keepAlive?: (work: Promise<unknown>) => void
}

export class Service {
  readonly models: readonly ServedModel[]
  readonly limits: Limits
  readonly #keepAlive: (work: Promise<unknown>) => void

  constructor({ models, limits, keepAlive = () => {} }: ServiceOptions) {
    this.models = Object.entries(models).map(([name, build]) => this.#serve(name, once(build)))
    this.limits = { ...DEFAULT_LIMITS, ...limits }
    this.#keepAlive = keepAlive
  }

  #serve(name: string, engine: Once<Engine>): ServedModel {
    let warm = false
    const warmUp = () => {
      const maxBytes = this.limits.warmUpBytes
      if (warm || maxBytes === 0) return
      warm = true
      // A failure is not lost: whoever needs what it was to bring meets it again.
      this.#keepAlive(
        engine
          .get()
          .then((ready) => ready.prewarm({ maxBytes }))
          .catch(() => {}),
      )
    }
    return { name, engine, warmUp }
  }

  /** @throws ApiError `model_not_found` */
  model(name: string | null | undefined): ServedModel {
    const model = name == null ? this.models[0] : this.models.find((served) => served.name === name)
    if (!model) {
      const known = this.models.map((served) => served.name).join(', ')
      throw new ApiError('model_not_found', `there is no model "${name}" here, only: ${known}`, {
        param: 'model',
      })
    }
    return model
  }

  /** Work that must not stop halfway. Returned as it is: whoever awaits it meets its failure. */
  keepAlive<T>(work: Promise<T>): Promise<T> {
    this.#keepAlive(work.catch(() => {}))
    return work
  }
}
