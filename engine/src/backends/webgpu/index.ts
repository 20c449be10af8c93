/**
 * @module
 * The WebGPU backend: onnxruntime-web runs prompts on a GPU, kernels of our own each token after them, weights and keys and
 * values stay there, and experts come when a gate picks them. Not for Workers, which have no GPU: its onnxruntime is far larger than a Worker may be.
 */
import { throwIfCancelled } from '../../errors.ts'
import { gateRule } from '../../model/selection.ts'
import { loadTrunk } from '../../pack/load.ts'
import { trunkBytes } from '../../pack/manifest.ts'
import { DEFAULT_EXPERTS } from '../../request.ts'
import type { Backend, BackendFactory } from '../backend.ts'
import { Decoder } from './decode.ts'
import { Device, findAdapter } from './device.ts'
import { Experts } from './experts.ts'
import { addModel, gateInputs } from './graph.ts'
import { Graph } from './onnx.ts'
import { Results } from './results.ts'
import { CachePool, GpuSequence } from './sequence.ts'
import { createSession } from './session.ts'
import { CHUNK, Stepper } from './step.ts'
import { GpuWeights } from './weights.ts'

export interface WebgpuOptions {
  /** Tokens of all open sequences together; by default 8,192, or the model's own context if that is shorter. */
  readonly contextTokens?: number
  /** Where onnxruntime's `ort-wasm-simd-threaded.asyncify.{mjs,wasm}` are served from; by default they are looked for
   * beside the script that imports onnxruntime-web. */
  readonly onnxruntimePath?: string
  /** Tokens that may be run before they are read, 8 by default; 1 runs none that nobody has asked for. The results are the
   * same. */
  readonly tokensAhead?: number
}

const DEFAULT_CONTEXT_TOKENS = 8192
const DEFAULT_TOKENS_AHEAD = 8

/**
 * @throws RangeError for `tokensAhead` below 1; SparsedgeError from the factory: `backend_unavailable` where there is no WebGPU, no adapter or no onnxruntime,
 * `memory_exhausted` where the model does not fit the GPU, as {@link loadTrunk} does; from the backend's steps `device_lost`,
 * `memory_exhausted`
 * @example
 * const engine = await createEngine({ store, model: 'smollm2', backend: webgpuBackend() })
 */
export function webgpuBackend(options: WebgpuOptions = {}): BackendFactory {
  const ahead = options.tokensAhead ?? DEFAULT_TOKENS_AHEAD
  if (!Number.isInteger(ahead) || ahead < 1) {
    throw new RangeError(`tokensAhead is ${ahead}; it must be a whole number, 1 or more`)
  }
  return async ({ manifest, store }, signal): Promise<Backend> => {
    throwIfCancelled(signal)
    const { config } = manifest
    const context = Math.min(options.contextTokens ?? DEFAULT_CONTEXT_TOKENS, config.context)
    const device = await Device.open(await findAdapter())
    try {
      const trunk = new Uint8Array(trunkBytes(manifest))
      await loadTrunk(manifest, store, trunk, signal)
      const weights = await GpuWeights.create(manifest, trunk, device)
      const graph = new Graph()
      addModel(graph, config, weights.graph, context)
      const session = await createSession(graph.model(), device, options.onnxruntimePath)
      const experts = new Experts(manifest, store, weights)
      const total = options.contextTokens ?? DEFAULT_CONTEXT_TOKENS
      const pool = new CachePool(device, { ...config, context }, total)
      const results = await device.allocating(() => new Results(device, config, ahead, CHUNK))
      const decoder = await Decoder.create(device, config, weights, results, context)
      const { bindings } = weights
      const stepper = new Stepper({ config, device, session, experts, bindings, results, decoder, ahead })
      return {
        name: 'webgpu',
        config: { ...config, context },
        prefillTokens: CHUNK,
        residency: experts,
        open(capacity, options = DEFAULT_EXPERTS) {
          const rule = gateRule(config, options.selection)
          return pool.open(capacity, { options, inputs: gateInputs(config, weights, rule) })
        },
        step(sequence, tokens, stepSignal) {
          if (!(sequence instanceof GpuSequence))
            throw new TypeError('the sequence is not of a WebGPU backend')
          return stepper.step(sequence, tokens, stepSignal)
        },
      }
    } catch (cause) {
      device.gpu.destroy()
      throw cause
    }
  }
}
