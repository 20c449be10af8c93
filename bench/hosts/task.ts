/**
 * @module
 * What is measured, wherever it is measured. Plain data: it crosses processes.
 */

export interface Task {
  /** Ours: the name of a pack. A peer's: the name of a GGUF file. */
  readonly model: string
  /** Which of our two builds; peers have one. */
  readonly kernels?: 'plain' | 'relaxed'
  /** Token ids. */
  readonly prompt: readonly number[]
  /** Tokens to decode after the one that the prompt gives. */
  readonly tokens: number
}

export interface Speed {
  /** Tokens a second. */
  readonly prefill: number
  readonly decode: number
}

export interface Answer extends Speed {
  /** What was written; a peer's is empty. Ours must be the same in every runtime. */
  readonly text: string
}

/** A program in one runtime that measures one thing at a time. */
export interface Host {
  readonly name: string
  generate(task: Task): Promise<Answer>
  /** How fast WebAssembly reads memory there: 10^9 bytes a second. Only where ours runs. */
  read(): Promise<number>
  close(): Promise<unknown>
}
