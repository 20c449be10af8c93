/**
 * @module
 * Sequences and the pool of KV pages that they share. A page holds 32 tokens of all layers; a sequence takes all the
 * pages that it may need when it is opened, so that it can never run out of them half-way.
 */
import { SparsedgeError } from '../../errors.ts'
import type { GateRule } from '../../model/selection.ts'
import type { ExpertOptions } from '../../request.ts'
import type { Account } from '../../residency/residency.ts'
import { ExpertUsage } from '../../residency/usage.ts'
import type { Sequence } from '../backend.ts'
import { PAGE_TOKENS } from './plan.ts'

/** How a sequence's steps choose and fetch experts. */
export interface ExpertsOfSequence {
  readonly rule: GateRule
  readonly options: ExpertOptions
}

export class WasmSequence implements Sequence, Account {
  length = 0
  readonly capacity: number
  readonly usage: ExpertUsage
  readonly rule: GateRule
  readonly options: ExpertOptions
  mayWait = true
  /** Its pages, in the order of its tokens; empty once it is closed. */
  pages: Int32Array
  readonly #pool: PagePool

  constructor(capacity: number, { rule, options }: ExpertsOfSequence, pages: Int32Array, pool: PagePool) {
    this.capacity = capacity
    this.usage = new ExpertUsage(rule.levels.length)
    this.rule = rule
    this.options = options
    this.pages = pages
    this.#pool = pool
  }

  /** Whether its pages are a pool's: in another one the same numbers are someone else's memory. */
  isOf(pool: PagePool): boolean {
    return this.#pool === pool
  }

  close(): void {
    this.#pool.giveBack(this.pages)
    this.pages = new Int32Array(0)
  }
}

export class PagePool {
  /** Ascending: a sequence whose pages are neighbours is read in long streams. */
  readonly #free: number[]
  readonly #count: number

  constructor(count: number) {
    this.#free = Array.from({ length: count }, (_, page) => page)
    this.#count = count
  }

  /** @throws SparsedgeError `memory_exhausted` if it can never fit, `queue_full` if it does not fit now */
  open(capacity: number, experts: ExpertsOfSequence): WasmSequence {
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
    return new WasmSequence(capacity, experts, Int32Array.from(this.#free.splice(0, needed)), this)
  }

  giveBack(pages: Int32Array): void {
    this.#free.push(...pages)
    this.#free.sort((a, b) => a - b)
  }
}
