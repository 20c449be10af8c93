/**
 * @module
 * Finds out what kind of checkpoint a path is and opens it with the adapter for it.
 */
import { stat } from 'node:fs/promises'
import { join } from 'node:path'
import { z } from 'zod'
import { cannot, codeOf } from '../files.ts'
import { type Checkpoint, type ImportOptions, malformed, parseJson, readText } from './checkpoint.ts'
import { FirstConfig, openFirstCheckpoint } from './first-checkpoint.ts'
import { openGguf } from './gguf.ts'
import { openHuggingFace } from './huggingface.ts'

/**
 * Opens a GGUF file or a checkpoint directory. The caller closes it.
 *
 * @throws SparsedgeError `checkpoint_malformed`, `checkpoint_unsupported`
 */
export async function openCheckpoint(path: string, options: ImportOptions = {}): Promise<Checkpoint> {
  const found = await stat(path).catch((cause: unknown) => {
    if (codeOf(cause) !== 'ENOENT') return cannot(`read ${path}`, 'checkpoint_malformed')(cause)
    throw malformed(`there is no checkpoint at ${path}; is the path right?`, cause)
  })
  if (!found.isDirectory()) return openGguf(path, options)
  const config = parseJson(z.unknown(), await readText(join(path, 'config.json')), 'config.json')
  return FirstConfig.safeParse(config).success
    ? openFirstCheckpoint(path, options)
    : openHuggingFace(path, options)
}
