/**
 * @module
 * Sequences and the pool of KV pages that they share. A page holds 32 tokens of all layers; a sequence takes all the
 * pages that it may need when it is opened, so that it can never run out of them half-way.
 */
import { SparsedgeError } from '../../errors.ts'
import { ExpertUsage } from '../../residency/usage.ts'
import type { Sequence } from '../backend.ts'
import { PAGE_TOKENS, type Plan } from './plan.ts'

export class WasmSequence implements Sequence {
  length = 0
  readonly capacity: number
  readonly usage = new ExpertUsage()
  /** Addresses of its pages, in the order of its tokens; empty once it is closed. */
  pages: Uint32Array
  readonly #pool: PagePool

  constructor(capacity: number, pages: Uint32Array, pool: PagePool) {
    this.capacity = capacity
    this.pages = pages
    this.#pool = pool
  }

  close(): void {
    this.#pool.giveBack(this.pages)
    this.pages = new Uint32Array(0)
  }
}

export class PagePool {
  readonly #free: number[] = []
  readonly #count: number

  constructor({ offset, pageBytes, count }: Plan['pages']) {
    for (let page = count - 1; page >= 0; page--) this.#free.push(offset + page * pageBytes)
    this.#count = count
  }

  /** @throws SparsedgeError `memory_exhausted` if it can never fit, `queue_full` if it does not fit now */
  open(capacity: number): WasmSequence {
    const needed = Math.ceil(capacity / PAGE_TOKENS)
    if (needed > this.#count) {
      throw new SparsedgeError(
        'memory_exhausted',
        `a sequence of ${capacity} tokens does not fit: all sequences share ${this.#count * PAGE_TOKENS}`,
      )
    }
    if (needed > this.#free.length) {
      throw new SparsedgeError(
        'queue_full',
        `a sequence of ${capacity} tokens does not fit now: ${this.#free.length * PAGE_TOKENS} are free; try again`,
      )
    }
    const pages = Uint32Array.from(this.#free.splice(this.#free.length - needed))
    return new WasmSequence(capacity, pages, this)
  }

  giveBack(pages: Uint32Array): void {
    this.#free.push(...pages)
  }
}
