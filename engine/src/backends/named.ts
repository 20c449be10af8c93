/**
 * @module
 * Backends by name, for every runtime but Workers: the kernels and onnxruntime are found and loaded here. With `auto` the
 * faster one is taken, by a measurement of this machine and this model, and WASM takes over where the GPU fails.
 */
import { SparsedgeError } from '../errors.ts'
import type { Manifest } from '../pack/manifest.ts'
import type { BackendFactory } from './backend.ts'
import { isBackendFailure, withFallback } from './fallback.ts'
import { supportsRelaxedSimd, type WasmModules, wasmBackend } from './wasm/index.ts'
import { expectedShare, measureWasm } from './wasm/measure.ts'

/**
 * - `wasm`: SIMD kernels on the CPU
 * - `webgpu`: the GPU; where there is none, creating the backend fails. When it is lost later, WASM takes over
 * - `auto`: whichever is faster here, as far as 150 ms of measuring tell; WASM wherever the GPU cannot be used
 */
export type BackendName = 'auto' | 'wasm' | 'webgpu'

export interface NamedOptions {
  /** The kernels; by default those that `npm run build` left in engine/dist. */
  readonly modules?: WasmModules
  /**
   * Where plain.wasm and relaxed.wasm are, if `modules` does not have them and no bundler brought them along: a folder's
   * URL, ending in a slash.
   */
  readonly kernelsUrl?: string | URL
  /** Where onnxruntime's files are served from, see WebgpuOptions. */
  readonly onnxruntimePath?: string
  /** The most WASM memory; by default 2 GiB, of which only what the model needs is taken. */
  readonly memoryBytes?: number
  /** Tokens of all open sequences together; by default as many as the backend has by default, and 4,096 where there are two,
   * or the model's own context if that is shorter. */
  readonly contextTokens?: number
  /** Told why the GPU was not taken, or given up. */
  readonly onFallback?: (reason: SparsedgeError) => void
}

const DEFAULT_MEMORY_BYTES = 2 ** 31
const DEFAULT_CONTEXT_TOKENS = 4096
/** As the WebGPU backend runs them ahead once a caller goes on as expected. */
const AHEAD = 8

/** @throws SparsedgeError from the factory, as the backend's own does */
export function namedBackend(name: BackendName, options: NamedOptions = {}): BackendFactory {
  /** Two backends must hold the same sequences. */
  const contextOf = ({ config }: Manifest) => {
    const both = name === 'wasm' ? undefined : Math.min(config.context, DEFAULT_CONTEXT_TOKENS)
    const contextTokens = options.contextTokens ?? both
    return contextTokens === undefined ? {} : { contextTokens }
  }
  const wasm: BackendFactory = async (pack, signal) =>
    wasmBackend({
      modules: options.modules ?? (await loadKernels(options.kernelsUrl)),
      memoryBytes: options.memoryBytes ?? DEFAULT_MEMORY_BYTES,
      ...contextOf(pack.manifest),
    })(pack, signal)
  if (name === 'wasm') return wasm
  const webgpu: BackendFactory = async (pack, signal) => {
    // Only whoever wants a GPU loads what it takes.
    const { webgpuBackend } = await import('./webgpu/index.ts')
    const { onnxruntimePath } = options
    const path = onnxruntimePath === undefined ? {} : { onnxruntimePath }
    return webgpuBackend({ ...contextOf(pack.manifest), ...path })(pack, signal)
  }
  const lasting = withFallback(webgpu, wasm, options.onFallback)
  if (name === 'webgpu') return lasting
  return async (pack, signal) => {
    try {
      await assertGpuPays(pack.manifest, options)
      return await lasting(pack, signal)
    } catch (cause) {
      if (!isBackendFailure(cause)) throw cause
      options.onFallback?.(cause)
      return wasm(pack, signal)
    }
  }
}

/** @throws SparsedgeError `backend_unavailable` where there is no GPU or WASM is expected to be faster */
async function assertGpuPays(manifest: Manifest, options: NamedOptions): Promise<void> {
  const [{ Device, findAdapter }, { measureWebgpu }] = await Promise.all([
    import('./webgpu/device.ts'),
    import('./webgpu/measure.ts'),
  ])
  const device = await Device.open(await findAdapter())
  try {
    const modules = options.modules ?? (await loadKernels(options.kernelsUrl))
    const share = expectedShare(manifest)
    const wasm = measureWasm(modules, manifest, options.memoryBytes ?? DEFAULT_MEMORY_BYTES, share)
    const webgpu = await measureWebgpu(device, manifest, AHEAD)
    if (webgpu < wasm) return
    throw new SparsedgeError(
      'backend_unavailable',
      `this GPU would take ${webgpu.toFixed(1)} ms a token, WASM ${wasm.toFixed(1)} ms; ask for "webgpu" to have it anyway`,
    )
  } finally {
    device.gpu.destroy()
  }
}

/**
 * The kernels, compiled; relaxed ones only where this runtime has them.
 *
 * @param folder their URL, ending in a slash; engine/dist by default
 * @throws SparsedgeError `backend_unavailable` if they are not there
 */
export async function loadKernels(folder?: string | URL): Promise<WasmModules> {
  const inFolder = (name: string) => new URL(name, new URL(folder ?? '', import.meta.url))
  const [plain, relaxed] =
    folder === undefined
      ? // Written out, so that a bundler that knows `new URL` brings the files along.
        [
          new URL('../../dist/plain.wasm', import.meta.url),
          new URL('../../dist/relaxed.wasm', import.meta.url),
        ]
      : [inFolder('plain.wasm'), inFolder('relaxed.wasm')]
  try {
    const modules = { plain: await compile(plain) }
    return supportsRelaxedSimd() ? { ...modules, relaxed: await compile(relaxed) } : modules
  } catch (cause) {
    const where = new URL('.', plain)
    const message = `the kernels cannot be loaded from ${where}: run \`npm run build\`, or serve engine/dist and say where with \`kernelsUrl\``
    throw new SparsedgeError('backend_unavailable', message, {}, { cause })
  }
}

async function compile(url: URL): Promise<WebAssembly.Module> {
  return WebAssembly.compile(await readBytes(url))
}

/** Node's `fetch` reads no files. */
async function readBytes(url: URL): Promise<Uint8Array<ArrayBuffer>> {
  const files =
    url.protocol === 'file:' ? globalThis.process?.getBuiltinModule?.('node:fs/promises') : undefined
  if (files) return new Uint8Array(await files.readFile(url))
  const response = await fetch(url)
  if (!response.ok) throw new Error(`${url} is answered with ${response.status}`)
  return new Uint8Array(await response.arrayBuffer())
}
