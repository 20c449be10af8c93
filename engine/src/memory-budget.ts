/**
 * @module
 * What several models that live in one isolate may take together.
 */

/**
 * Bytes of WASM memory, shared by the backends that are given the same budget. A backend takes its memory once, when it is
 * made, and for good. Its share goes by the model's name, so that a load which was dropped half-way (Workers drops what
 * the request that started it did not live to see) holds nothing against the next attempt.
 *
 * @example
 * const budget = new MemoryBudget(96 * 2 ** 20)
 * const small = wasmBackend({ modules, budget, memoryBytes: 40 * 2 ** 20 })
 * const large = wasmBackend({ modules, budget })
 */
export class MemoryBudget {
  readonly bytes: number
  readonly #taken = new Map<string, number>()

  constructor(bytes: number) {
    this.bytes = bytes
  }

  /** Bytes that a model may take: all that the others have not. */
  leftFor(model: string): number {
    let left = this.bytes
    for (const [other, bytes] of this.#taken) if (other !== model) left -= bytes
    return left
  }

  /** Takes a share, in place of the one that the model had. @throws RangeError above {@link MemoryBudget.leftFor} */
  take(model: string, bytes: number): void {
    const left = this.leftFor(model)
    if (bytes > left) throw new RangeError(`${model} takes ${bytes} bytes of the ${left} that are left`)
    this.#taken.set(model, bytes)
  }

  /** The model has let go of its share. */
  giveBack(model: string): void {
    this.#taken.delete(model)
  }
}
