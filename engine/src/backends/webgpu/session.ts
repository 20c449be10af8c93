/**
 * @module
 * onnxruntime-web, started once and told to keep everything on one device.
 */
import * as ort from 'onnxruntime-web/webgpu'
import { SparsedgeError } from '../../errors.ts'
import type { Device } from './device.ts'

export type Session = ort.InferenceSession
export type Feeds = Record<string, ort.Tensor>

/** onnxruntime takes one model at a time. */
let creating: Promise<unknown> = Promise.resolve()

/**
 * @param wasmPath where `ort-wasm-simd-threaded.asyncify.{mjs,wasm}` are served from, where they do not lie beside the
 * script that imports them
 * @throws SparsedgeError `backend_unavailable` if onnxruntime cannot be loaded or refuses the graph; `device_lost`
 */
export async function createSession(
  model: Uint8Array<ArrayBuffer>,
  device: Device,
  wasmPath: string | undefined,
): Promise<Session> {
  ort.env.wasm.numThreads = 1
  ort.env.logLevel = 'error'
  // It would ask for one of its own and drop it, which Deno's WebGPU does not survive.
  ort.env.webgpu.adapter = device.adapter
  if (wasmPath !== undefined) ort.env.wasm.wasmPaths = wasmPath
  const turn = creating.catch(() => {})
  const session = turn.then(() =>
    ort.InferenceSession.create(model, {
      executionProviders: [{ name: 'webgpu', device: device.gpu }],
      // A node on the CPU would cost a readback each.
      extra: { session: { disable_cpu_ep_fallback: '1' } },
    }),
  )
  creating = session
  try {
    return await device.wait(session)
  } catch (cause) {
    if (cause instanceof SparsedgeError) throw cause
    throw new SparsedgeError(
      'backend_unavailable',
      `onnxruntime cannot run the model: ${cause}`,
      {},
      { cause },
    )
  }
}

/** A tensor in GPU memory, which stays the caller's. */
export function gpuTensor(
  buffer: GPUBuffer,
  dataType: 'float32' | 'int32' | 'uint8',
  dims: readonly number[],
): ort.Tensor {
  return ort.Tensor.fromGpuBuffer(buffer, { dataType, dims })
}

/** A tensor of one number, and the memory behind it, which may be changed between runs. */
export function scalarTensor(): { readonly tensor: ort.Tensor; readonly data: Int32Array } {
  const data = new Int32Array(1)
  return { tensor: new ort.Tensor('int32', data, [1]), data }
}

/** Token ids, [1, tokens]. */
export function idTensor(ids: Int32Array): ort.Tensor {
  return new ort.Tensor('int32', ids, [1, ids.length])
}
