/**
 * @module
 * Chromium: a page that measures ours, or wllama with one file. Packs, modules and files come over HTTP.
 */
import { httpStore } from '@sparsedge/engine/store/http'
import { createMeter, type Meter } from './ours.ts'
import type { Answer } from './task.ts'

/** @param address of a server that has a pack directory, the kernels and `read.wasm` */
export async function openOurs(address: string): Promise<Meter> {
  const compile = (name: string) => WebAssembly.compileStreaming(fetch(`${address}/${name}.wasm`))
  const [plain, relaxed, reader] = await Promise.all(['plain', 'relaxed', 'read'].map(compile))
  return createMeter({ store: httpStore(address), modules: { plain, relaxed }, reader })
}

/** Of wllama's interface, what is used here. */
interface Wllama {
  loadModel(files: Blob[], options: { n_threads: number; n_ctx: number }): Promise<void>
  samplingInit(options: { temp: number }): Promise<void>
  samplingSample(): Promise<{ token: number }>
  samplingAccept(tokens: number[]): Promise<void>
  kvClear(): Promise<void>
  decode(tokens: number[], options: object): Promise<unknown>
}
interface WllamaModule {
  readonly Wllama: new (paths: Record<string, string>, options: { suppressNativeLog: boolean }) => Wllama
}

/** @param address of a server that has wllama's `esm` folder and the GGUF files */
export async function openWllama(address: string): Promise<Pick<Meter, 'generate'>> {
  const library: WllamaModule = await import(`${address}/index.js`)
  const models = new Map<string, Promise<Wllama>>()
  return {
    async generate({ model, prompt, tokens }) {
      const loaded = models.get(model) ?? load(model)
      models.set(model, loaded)
      return generate(await loaded, prompt, tokens)
    },
  }

  async function load(file: string): Promise<Wllama> {
    const wllama = new library.Wllama(
      { 'single-thread/wllama.wasm': `${address}/single-thread/wllama.wasm` },
      { suppressNativeLog: true },
    )
    const response = await fetch(`${address}/${file}`)
    await wllama.loadModel([await response.blob()], { n_threads: 1, n_ctx: 1024 })
    return wllama
  }
}

/** What `createCompletion` does, with token ids for a prompt and without an end. */
async function generate(wllama: Wllama, prompt: readonly number[], tokens: number): Promise<Answer> {
  await wllama.samplingInit({ temp: 0 })
  await wllama.kvClear()
  const start = performance.now()
  await wllama.decode([...prompt], {})
  let { token } = await wllama.samplingSample()
  const prefilled = performance.now()
  for (let i = 0; i < tokens; i++) {
    await wllama.samplingAccept([token])
    await wllama.decode([token], {})
    token = (await wllama.samplingSample()).token
  }
  const end = performance.now()
  return {
    prefill: (1000 * prompt.length) / (prefilled - start),
    decode: (1000 * tokens) / (end - prefilled),
    text: '',
  }
}

/** What the driver calls (chromium.ts). */
export type Page = { meter?: Pick<Meter, 'generate'> & Partial<Meter> }
