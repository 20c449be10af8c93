/**
 * @module
 * What the entries for Node and Deno share: the modules and the page are read from disk, the pack comes from a directory
 * or over HTTP.
 *
 * | setting | |
 * |---|---|
 * | `STORE` | a directory that `weights-tool push` wrote, or the http(s) address of one |
 * | `PORT`, `HOST` | default 8787 on localhost |
 * | `BACKEND` | `wasm`, the default: the same bits on every machine; `webgpu`; or `auto`, the faster of them here |
 * | and those of settings.ts | |
 */
import { readFile } from 'node:fs/promises'
import { createEngine } from '@sparsedge/engine'
import { loadKernels, namedBackend } from '@sparsedge/engine/backends/named'
import { parseManifest } from '@sparsedge/engine/pack/manifest'
import { withDeadline } from '@sparsedge/engine/store/deadline'
import { fsStore } from '@sparsedge/engine/store/fs'
import { httpStore } from '@sparsedge/engine/store/http'
import type { Hono } from 'hono'
import { z } from 'zod'
import { createApp } from '../app.ts'
import { appSettings, named, optional, readSettings, Settings, whole } from './settings.ts'

/** Only what the model needs is taken: all experts of a small one stay in memory. */
const DEFAULT_MEMORY_MIB = 2048

const LocalSettings = Settings.extend({
  STORE: named('must be a directory that `weights-tool push` wrote, or the http(s) address of one'),
  PORT: optional(whole(0, 65_535)).default(8787),
  HOST: optional(z.string()).default('localhost'),
  BACKEND: optional(z.enum(['auto', 'wasm', 'webgpu'], 'must be auto, wasm or webgpu')).default('wasm'),
})

/**
 * @throws Error where the environment is not set up, or the store does not have the model; SparsedgeError where the engine
 * has not been built
 */
export async function localApp(
  environment: Readonly<Record<string, string | undefined>>,
): Promise<{ app: Hono; hostname: string; port: number }> {
  const settings = readSettings(LocalSettings, environment)
  const { MODEL: model, CONTEXT_TOKENS: contextTokens, MEMORY_MIB = DEFAULT_MEMORY_MIB } = settings
  const { STORE, HOST, PORT, BACKEND } = settings
  const store = /^https?:/.test(STORE) ? httpStore(STORE) : fsStore(STORE)
  // A server that was set up wrongly is told now, not its first client later.
  try {
    parseManifest(await withDeadline(store).manifest(model))
  } catch (cause) {
    throw new Error(`STORE=${STORE}: ${inWords(cause)}`, { cause })
  }
  const modules = await loadKernels()
  const app = createApp({
    ...appSettings(settings),
    page: await readFile(new URL('../playground/index.html', import.meta.url), 'utf8'),
    models: {
      [model]: () =>
        createEngine({
          store,
          model,
          backend: namedBackend(BACKEND, {
            modules,
            memoryBytes: MEMORY_MIB * 2 ** 20,
            ...(contextTokens && { contextTokens }),
            onFallback: ({ message }) => console.error(`WASM instead of the GPU: ${message}`),
          }),
        }),
    },
  })
  return { app, hostname: HOST, port: PORT }
}

/** Ends the process with a line that says why; for whatever keeps a server from starting. */
export function cannotStart(error: unknown): never {
  console.error(inWords(error))
  process.exit(1)
}

function inWords(error: unknown): string {
  if (!(error instanceof Error)) return String(error)
  const taken = 'code' in error && error.code === 'EADDRINUSE'
  return taken ? `the port is taken; set PORT to another one (${error.message})` : error.message
}
