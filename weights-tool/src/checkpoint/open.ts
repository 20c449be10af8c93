/**
 * @module
 * Finds out what kind of checkpoint a path is and opens it with the adapter for it.
 */
import { readFile, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { z } from 'zod'
import { type Checkpoint, compactTokenizer, type ImportOptions, malformed, parseJson } from './checkpoint.ts'
import { FirstConfig, openFirstCheckpoint } from './first-checkpoint.ts'

/**
 * Opens a GGUF file or a checkpoint directory.
 *
 * @throws SparsedgeError `checkpoint_malformed`, `checkpoint_unsupported`
 */
export async function openCheckpoint(path: string, options: ImportOptions = {}): Promise<Checkpoint> {
  const checkpoint = await openKind(path, options)
  try {
    const tokenizer = options.tokenizer
      ? compactTokenizer(await readText(options.tokenizer), options.tokenizer)
      : checkpoint.text.tokenizer
    const chatTemplate = options.chatTemplate
      ? await readText(options.chatTemplate)
      : checkpoint.text.chatTemplate
    return { ...checkpoint, text: { tokenizer, ...(chatTemplate && { chatTemplate }) } }
  } catch (error) {
    await checkpoint.close()
    throw error
  }
}

async function openKind(path: string, _options: ImportOptions): Promise<Checkpoint> {
  const found = await stat(path).catch((cause: unknown) => {
    throw malformed(`there is no checkpoint at ${path}`, cause)
  })
  if (!found.isDirectory()) throw malformed(`${path} is neither a GGUF file nor a checkpoint directory`)
  const config = parseJson(z.unknown(), await readText(join(path, 'config.json')), 'config.json')
  if (FirstConfig.safeParse(config).success) return openFirstCheckpoint(path)
  throw malformed(`${path} is of no known kind`)
}

async function readText(path: string): Promise<Uint8Array<ArrayBuffer>> {
  try {
    return new Uint8Array(await readFile(path))
  } catch (cause) {
    throw malformed(`cannot read ${path}`, cause)
  }
}
