/**
 * @module
 * Sequences: keys and values of each layer in GPU buffers of their own, as long as the sequence may become.
 */
import { SparsedgeError } from '../../errors.ts'
import type { ModelConfig } from '../../model/config.ts'
import type { ExpertOptions } from '../../request.ts'
import type { Account } from '../../residency/residency.ts'
import { ExpertUsage } from '../../residency/usage.ts'
import type { Sequence } from '../backend.ts'
import type { Device } from './device.ts'

/** Capacities are multiples of this, so that closed sequences leave buffers that the next can use. */
const GRAIN = 64

/** What a sequence has on the GPU. */
export interface Cache {
  readonly tokens: number
  /** [1, kvHeads, tokens, headDim] float32: keys, values of layer 0, of layer 1, … */
  readonly buffers: readonly GPUBuffer[]
  /** The gates' inputs, [experts] or [1], by layer. */
  readonly gates: readonly GPUBuffer[]
  /** Rejected with `memory_exhausted` if the GPU had no memory for it, which shows only later. */
  readonly ready: Promise<void>
}

/** How a sequence's experts are chosen, and on which terms they are fetched. */
export interface Terms {
  readonly options: ExpertOptions
  /** The gates' inputs by layer, as graph.ts says. */
  readonly inputs: readonly Float32Array<ArrayBuffer>[]
}

export class GpuSequence implements Sequence, Account {
  length = 0
  readonly capacity: number
  readonly usage: ExpertUsage
  readonly options: ExpertOptions
  mayWait = true
  /** Undefined once it is closed. */
  cache: Cache | undefined
  readonly #pool: CachePool

  constructor(capacity: number, cache: Cache, terms: Terms, layers: number, pool: CachePool) {
    this.capacity = capacity
    this.cache = cache
    this.usage = new ExpertUsage(layers)
    this.options = terms.options
    this.#pool = pool
  }

  close(): void {
    if (this.cache) this.#pool.giveBack(this.cache)
    this.cache = undefined
  }
}

/** The memory for all sequences' keys and values. */
export class CachePool {
  readonly #device: Device
  readonly #config: ModelConfig
  readonly #total: number
  #used = 0
  /** Of closed sequences, still allocated. */
  readonly #free: Cache[] = []

  /**
   * @param config whose `context` bounds each sequence: past it there are no positions to compute with
   * @param total tokens of all open sequences together
   */
  constructor(device: Device, config: ModelConfig, total: number) {
    this.#device = device
    this.#config = config
    this.#total = total
  }

  /** @throws SparsedgeError `memory_exhausted` if it can never fit, `queue_full` if it does not fit now; `device_lost` */
  open(capacity: number, terms: Terms): GpuSequence {
    this.#device.check()
    const tokens = Math.ceil(capacity / GRAIN) * GRAIN
    if (capacity > this.#config.context) {
      const message = `a sequence of ${capacity} tokens does not fit a context of ${this.#config.context}`
      throw new SparsedgeError('memory_exhausted', message)
    }
    if (capacity > this.#total) {
      const message = `a sequence of ${capacity} tokens does not fit: all sequences share ${this.#total}`
      throw new SparsedgeError('memory_exhausted', message)
    }
    if (this.#used > 0 && this.#used + tokens > this.#total) {
      const message = `a sequence of ${capacity} tokens does not fit now: ${this.#used} of ${this.#total} are taken; try again`
      throw new SparsedgeError('queue_full', message)
    }
    this.#used += tokens
    const cache = this.#take(tokens)
    for (const [layer, numbers] of terms.inputs.entries()) {
      this.#device.gpu.queue.writeBuffer(cache.gates[layer], 0, numbers)
    }
    return new GpuSequence(capacity, cache, terms, this.#config.layers, this)
  }

  giveBack(cache: Cache): void {
    this.#used -= cache.tokens
    cache.ready.then(
      () => this.#free.push(cache),
      // One for which there was no memory for all is of no use to anybody, and holds what there was.
      () => destroy(cache),
    )
  }

  #take(tokens: number): Cache {
    const fitting = this.#free.findIndex((cache) => cache.tokens === tokens)
    if (fitting >= 0) return this.#free.splice(fitting, 1)[0]
    // What nobody uses makes room for what somebody does.
    for (const cache of this.#free.splice(0)) destroy(cache)
    const { layers, kvHeads, headDim, experts } = this.#config
    const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST
    const bytes = 4 * kvHeads * tokens * headDim
    const buffers: GPUBuffer[] = []
    const gates: GPUBuffer[] = []
    const ready = this.#device.allocating(() => {
      // These first: they are filled at once, though keys and values may be larger than a GPU binds.
      for (let layer = 0; layer < layers; layer++) gates.push(this.#device.buffer(4 * experts, usage))
      for (let i = 0; i < 2 * layers; i++) buffers.push(this.#device.buffer(bytes, usage))
    })
    // Whoever steps hears of it.
    ready.catch(() => {})
    return { tokens, buffers, gates, ready }
  }
}

function destroy({ buffers, gates }: Cache): void {
  for (const buffer of [...buffers, ...gates]) buffer.destroy()
}
