/**
 * @module
 * What the tests of the WASM backend share: its builds, compiled from the sources as they are, and ways to run tokens
 * through a backend and to compare logits.
 */
import type { Backend, Sequence } from '@sparsedge/engine/backends/backend'
import { type WasmModules, type WasmOptions, wasmBackend } from '@sparsedge/engine/backends/wasm/index'
import type { Manifest } from '@sparsedge/engine/pack/manifest'
import type { ExpertOptions } from '@sparsedge/engine/request'
import type { ShardStore } from '@sparsedge/engine/store/store'
import { compile } from '../../engine/assembly/build.ts'
import { tinyConfig } from '../fixtures/tiny.ts'

const [plainBytes, relaxedBytes] = await Promise.all([compile('plain'), compile('relaxed')])
const plain = new WebAssembly.Module(plainBytes)

/** Every set of modules that a runtime may have. */
export const MODULES = {
  'plain only': { plain },
  'plain and relaxed': { plain, relaxed: new WebAssembly.Module(relaxedBytes) },
} as const satisfies Record<string, WasmModules>

/** A backend for a tiny pack, with more memory than it can use. */
export function tinyBackend(
  pack: { readonly manifest: Manifest; readonly store: ShardStore },
  options: Partial<WasmOptions> = {},
): Promise<Backend> {
  const defaults = { modules: MODULES['plain and relaxed'], memoryBytes: 32 << 20, contextTokens: 256 }
  return wasmBackend({ ...defaults, ...options })(pack)
}

/** `count` token ids below the tiny vocabulary that visit it evenly. */
export function tinyTokens(count: number): Int32Array {
  const { vocab } = tinyConfig()
  return Int32Array.from({ length: count }, (_, i) => (i * 37 + 11) % vocab)
}

/** Runs tokens in steps of the given sizes. @returns a copy of the last logits */
export async function runInSteps(
  backend: Backend,
  sequence: Sequence,
  tokens: Int32Array,
  sizes: readonly number[],
): Promise<Float32Array> {
  let at = 0
  let logits = new Float32Array(0)
  for (const size of sizes) {
    logits = Float32Array.from(await backend.step(sequence, tokens.subarray(at, at + size)))
    at += size
  }
  return logits
}

/** The logits of tokens that are run in a sequence of their own. */
export async function logitsOf(
  backend: Backend,
  tokens: Int32Array,
  sizes: readonly number[] = [tokens.length],
  experts?: ExpertOptions,
): Promise<Float32Array> {
  const sequence = backend.open(tokens.length, experts)
  try {
    return await runInSteps(backend, sequence, tokens, sizes)
  } finally {
    sequence.close()
  }
}

/** KL divergence of softmax(actual) from softmax(expected), in nats. */
export function divergence(expected: Float32Array, actual: Float32Array): number {
  const p = logSoftmax(expected)
  const q = logSoftmax(actual)
  return p.reduce((sum, logP, i) => sum + Math.exp(logP) * (logP - q[i]), 0)
}

function logSoftmax(logits: Float32Array): Float64Array {
  const peak = logits.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY)
  const sum = logits.reduce((total, x) => total + Math.exp(x - peak), 0)
  return Float64Array.from(logits, (x) => x - peak - Math.log(sum))
}
