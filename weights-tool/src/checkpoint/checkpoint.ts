/**
 * @module
 * What every importer gives: float weights under the project's names, the text files, and what is known of the origin.
 * One file of this folder per foreign layout; nothing outside the folder knows foreign names.
 */
import { readFile } from 'node:fs/promises'
import { SparsedgeError } from '@sparsedge/engine/errors'
import { ModelConfig } from '@sparsedge/engine/model/config'
import type { WeightSource } from '@sparsedge/engine/model/weights'
import type { Manifest } from '@sparsedge/engine/pack/manifest'
import { z } from 'zod'
import { cannot } from '../files.ts'

export interface Checkpoint {
  readonly weights: WeightSource
  readonly text: {
    /** tokenizer.json. */
    readonly tokenizer: Uint8Array<ArrayBuffer>
    /** Jinja source. */
    readonly chatTemplate?: Uint8Array<ArrayBuffer>
  }
  /** What the checkpoint says of itself; a caller may know better. */
  readonly provenance: { readonly source: string; readonly licence?: string }
  readonly profile?: Manifest['profile']
  readonly quality?: Manifest['quality']
  /** Closes its files. */
  close(): Promise<void>
}

export interface ImportOptions {
  /** Experts that a dense FFN is cut into; a checkpoint with experts of its own keeps those. */
  readonly experts?: number
  /** Path of a tokenizer.json that takes the place of the checkpoint's. */
  readonly tokenizer?: string
  /** Path of a Jinja chat template that takes the place of the checkpoint's. */
  readonly chatTemplate?: string
}

/** A size or a number of things: far above any model's, and low enough that nothing absurd is allocated for it. */
export const count = z
  .int()
  .positive()
  .max(2 ** 24)

export function malformed(message: string, cause?: unknown): SparsedgeError {
  return new SparsedgeError('checkpoint_malformed', message, {}, { cause })
}

export function unsupported(message: string, cause?: unknown): SparsedgeError {
  return new SparsedgeError('checkpoint_unsupported', message, {}, { cause })
}

/**
 * Cuts a dense FFN into equal experts, all of them always on: the sum over all experts is the FFN itself.
 *
 * @param units hidden units of the FFN
 * @param experts how many; by default as many as make 64 units each, or else 32
 * @throws SparsedgeError `checkpoint_unsupported` where that is not a whole number of 32-unit blocks
 */
export function splitDense(
  units: number,
  experts?: number,
): Pick<ModelConfig, 'experts' | 'expertUnits' | 'gate'> {
  const count = experts ?? units / (units % 64 === 0 ? 64 : 32)
  const expertUnits = units / count
  if (!Number.isInteger(count) || expertUnits % 32 !== 0) {
    throw unsupported(
      `an FFN of ${units} units does not split into ${count} experts of a multiple of 32 units; ` +
        (units % 32 === 0 ? 'choose another --experts' : 'its width is no multiple of 32'),
    )
  }
  return { experts: count, expertUnits, gate: { kind: 'all', source: 'own', selection: { by: 'all' } } }
}

/** @throws SparsedgeError `checkpoint_unsupported`, saying which number the engine cannot work with */
export function modelConfig(config: ModelConfig): ModelConfig {
  const parsed = ModelConfig.safeParse(config)
  if (parsed.success) return parsed.data
  throw unsupported(`the model's shape cannot be served:\n${z.prettifyError(parsed.error)}`, parsed.error)
}

/** @throws SparsedgeError `checkpoint_malformed`, naming the file and the field */
export function parseJson<Schema extends z.ZodType>(
  schema: Schema,
  bytes: Uint8Array,
  file: string,
): z.output<Schema> {
  let json: unknown
  try {
    json = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes))
  } catch (cause) {
    throw malformed(`${file} is not JSON`, cause)
  }
  const parsed = schema.safeParse(json)
  if (parsed.success) return parsed.data
  throw malformed(`${file} is not as expected:\n${z.prettifyError(parsed.error)}`, parsed.error)
}

const Tokenizer = z.looseObject({ model: z.looseObject({ type: z.string() }) })

/**
 * A checkpoint's text files, or those that the caller named instead.
 *
 * @throws SparsedgeError `checkpoint_malformed`, and what the checkpoint's own readers throw
 */
export async function textFiles(
  options: ImportOptions,
  own: {
    readonly tokenizer: () => Promise<Uint8Array>
    readonly chatTemplate: () => Promise<Uint8Array<ArrayBuffer> | undefined>
  },
): Promise<Checkpoint['text']> {
  const { tokenizer: path } = options
  const tokenizer = path === undefined ? await own.tokenizer() : await readText(path)
  const chatTemplate =
    options.chatTemplate === undefined ? await own.chatTemplate() : await readText(options.chatTemplate)
  return {
    tokenizer: compactTokenizer(tokenizer, path ?? 'tokenizer.json'),
    ...(chatTemplate && { chatTemplate }),
  }
}

/** @throws SparsedgeError `checkpoint_malformed` if it cannot be read */
export async function readText(path: string): Promise<Uint8Array<ArrayBuffer>> {
  return new Uint8Array(await readFile(path).catch(cannot(`read ${path}`, 'checkpoint_malformed')))
}

/**
 * A tokenizer.json without its line breaks and indents, which are half of it: every cold start reads this file.
 *
 * @throws SparsedgeError `checkpoint_malformed` for what is no tokenizer.json
 */
function compactTokenizer(bytes: Uint8Array, file: string): Uint8Array<ArrayBuffer> {
  return new TextEncoder().encode(JSON.stringify(parseJson(Tokenizer, bytes, file)))
}
