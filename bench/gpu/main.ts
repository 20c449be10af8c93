/**
 * @module
 * The measurement itself, for Deno on the machine with the GPU: `deno run -A main.mjs [--smallest]`. Prints progress to
 * stderr and a report as JSON to stdout. `--smallest` measures next to nothing: it is for trying out on a software adapter.
 */

import { readFile } from 'node:fs/promises'
import type { Backend } from '@sparsedge/engine/backends/backend'
import { wasmBackend } from '@sparsedge/engine/backends/wasm/index'
import { Device, findAdapter } from '@sparsedge/engine/backends/webgpu/device'
import { webgpuBackend } from '@sparsedge/engine/backends/webgpu/index'
import type { Manifest } from '@sparsedge/engine/pack/manifest'
import type { ShardStore } from '@sparsedge/engine/store/store'
import * as ort from 'onnxruntime-web/webgpu'
import { type Card, measureCard } from './card.ts'
import { largest } from './largest.ts'
import { ordinary } from './ordinary.ts'
import { packedBytes, smolConfig, syntheticPack } from './synthetic.ts'

const smallest = process.argv.includes('--smallest')
const LAYERS = smallest ? 1 : 30
const PROMPT = smallest ? 8 : 512
const TOKENS = smallest ? 4 : 128
const COMPARED = smallest ? 8 : 512

export interface Speed {
  readonly what: string
  /** Tokens a second. */
  readonly prefill: number
  readonly decode: number
  /** A token's, in steady state. */
  readonly dispatches: number
  readonly submits: number
  readonly readbacks: number
  /** Bytes of weights that a token reads. */
  readonly weightBytes: number
  /** Mean share of experts that were routed. */
  readonly share?: number
  /** Milliseconds until the first token, experts still in the store. */
  readonly firstTokenMs?: number
}

export interface GpuReport {
  readonly date: string
  readonly runtime: string
  readonly card: Card
  readonly layers: number
  readonly prompt: number
  readonly tokens: number
  readonly speeds: Speed[]
  readonly parity: { readonly tokens: number; readonly top1: number; readonly kl: number }
  readonly errors: string[]
}

const counted = { dispatches: 0, submits: 0, readbacks: 0 }
const HERE = new URL('.', import.meta.url)
const note = (text: string) => console.error(`${(performance.now() / 1000).toFixed(1)} s  ${text}`)

const errors: string[] = []
/** One that fails must not take the others' numbers along. */
async function attempt<T>(what: string, work: () => Promise<T>): Promise<T | undefined> {
  note(what)
  try {
    return await work()
  } catch (error) {
    const text = `${what}: ${error instanceof Error ? (error.stack ?? error.message) : error}`
    errors.push(text)
    note(text)
    return undefined
  }
}

count()
const adapter = await findAdapter()
const device = await Device.open(adapter)
const card = await measureCard(adapter, device.gpu, smallest)
note(JSON.stringify(card))
const speeds: Speed[] = []
const add = (speed: Speed | undefined) => {
  if (!speed) return
  speeds.push(speed)
  note(JSON.stringify(speed))
}

for (const share of [1, 0.5, 0.25]) {
  const pack = await syntheticPack(LAYERS, share)
  for (const ahead of share === 0.5 ? [1, 2, 4, 8, 16] : [8]) {
    add(await attempt(`ours, share ${share}, ${ahead} a readback`, () => ours(pack, share, ahead)))
  }
}
add(await attempt('ordinary', measureOrdinary))
const parity = await attempt('parity', compare)
const report: GpuReport = {
  date: new Date().toISOString().slice(0, 10),
  runtime: 'Deno' in globalThis ? `Deno ${process.versions.deno}` : `Node ${process.version}`,
  card,
  layers: LAYERS,
  prompt: PROMPT,
  tokens: TOKENS,
  speeds,
  parity: parity ?? { tokens: 0, top1: 0, kl: 0 },
  errors,
}
console.log(JSON.stringify(report, null, 2))
process.exit(0)

/** Weights that a token's step multiplies with, where it reads a share of the experts. */
function weights(share: number): number {
  return LAYERS * (960 * 576 + 576 * 576 + share * 3 * 1536 * 576) + 49152 * 576
}

async function ours(
  pack: { manifest: Manifest; store: ShardStore },
  share: number,
  tokensAhead: number,
): Promise<Speed> {
  const backend = await webgpuBackend({ tokensAhead, onnxruntimePath: HERE.href })(pack)
  const prompt = Int32Array.from({ length: PROMPT }, (_, i) => (i * 37 + 11) % backend.config.vocab)
  const cold = performance.now()
  await generate(backend, prompt.subarray(0, 8), 1)
  const firstTokenMs = performance.now() - cold
  // All shapes once, so that no shader is compiled while the clock runs.
  await generate(backend, prompt, 2 * tokensAhead)
  // And all experts, so that no step runs twice.
  await backend.residency?.prewarm()
  const measured = await generate(backend, prompt, TOKENS, 2 * tokensAhead)
  return {
    what: `ours, share ${share}, ${tokensAhead} a readback`,
    ...measured,
    // A byte a weight and a float for 32 of them.
    weightBytes: weights(measured.share) * (1 + 4 / 32),
    firstTokenMs,
  }
}

/** @param warm tokens that are decoded before the clock starts */
async function generate(backend: Backend, prompt: Int32Array, tokens: number, warm = 0) {
  const sequence = backend.open(prompt.length + tokens + warm + 1)
  const start = performance.now()
  let next = 0
  const chunk = backend.prefillTokens ?? 128
  for (let at = 0; at < prompt.length; at += chunk) {
    next = largest(await backend.step(sequence, prompt.subarray(at, at + chunk)))
  }
  const prefilled = performance.now()
  const id = new Int32Array(1)
  const decode = async (count: number) => {
    for (let i = 0; i < count; i++) {
      id[0] = next
      next = largest(await backend.step(sequence, id))
    }
  }
  await decode(warm)
  const before = { ...counted }
  const started = performance.now()
  await decode(tokens)
  const ended = performance.now()
  sequence.close()
  return {
    prefill: (1000 * prompt.length) / (prefilled - start),
    decode: (1000 * tokens) / (ended - started),
    ...since(before, tokens),
    share: sequence.usage.activeShare,
  }
}

async function measureOrdinary(): Promise<Speed> {
  ort.env.wasm.wasmPaths = HERE.href
  ort.env.webgpu.adapter = adapter
  const model = await ordinary(LAYERS, device.gpu)
  await model.prefill(PROMPT)
  await model.decode(4)
  const start = performance.now()
  await model.prefill(PROMPT)
  const prefilled = performance.now()
  const before = { ...counted }
  await model.decode(TOKENS)
  const ended = performance.now()
  await model.close()
  return {
    what: 'onnxruntime-web, dense, the ordinary way',
    prefill: (1000 * PROMPT) / (prefilled - start),
    decode: (1000 * TOKENS) / (ended - prefilled),
    ...since(before, TOKENS),
    weightBytes: packedBytes(smolConfig(LAYERS, 1)),
  }
}

/** What a token asked of the GPU. */
function since(before: typeof counted, tokens: number): typeof counted {
  return {
    dispatches: (counted.dispatches - before.dispatches) / tokens,
    submits: (counted.submits - before.submits) / tokens,
    readbacks: (counted.readbacks - before.readbacks) / tokens,
  }
}

/** Forced decoding: the same tokens through both backends, one at a time. */
async function compare(): Promise<GpuReport['parity']> {
  const pack = await syntheticPack(LAYERS, 0.5)
  const compile = async (name: string) => WebAssembly.compile(await readFile(new URL(name, HERE)))
  const modules = { plain: await compile('plain.wasm'), relaxed: await compile('relaxed.wasm') }
  const wasm = await wasmBackend({ modules, memoryBytes: 512 << 20 })(pack)
  const gpu = await webgpuBackend({ onnxruntimePath: HERE.href })(pack)
  const [a, b] = [wasm.open(COMPARED), gpu.open(COMPARED)]
  let same = 0
  let kl = 0
  for (let i = 0; i < COMPARED; i++) {
    const token = Int32Array.of((i * 7919 + 11) % wasm.config.vocab)
    const p = await wasm.step(a, token)
    const q = await gpu.step(b, token)
    if (largest(p) === largest(q)) same += 1
    kl += divergence(p, q)
  }
  return { tokens: COMPARED, top1: same / COMPARED, kl: kl / COMPARED }
}

function divergence(p: Float32Array, q: Float32Array): number {
  const [logP, logQ] = [p, q].map((logits) => {
    const most = logits.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY)
    const sum = logits.reduce((total, x) => total + Math.exp(x - most), 0)
    return Float64Array.from(logits, (x) => x - most - Math.log(sum))
  })
  return logP.reduce((total, x, i) => total + Math.exp(x) * (x - logQ[i]), 0)
}

/** Counts what is asked of the GPU, whoever asks. */
function count(): void {
  const pass = GPUComputePassEncoder.prototype
  const { dispatchWorkgroups } = pass
  pass.dispatchWorkgroups = function (...sizes) {
    counted.dispatches += 1
    return dispatchWorkgroups.apply(this, sizes)
  }
  const { submit } = GPUQueue.prototype
  GPUQueue.prototype.submit = function (...buffers) {
    counted.submits += 1
    return submit.apply(this, buffers)
  }
  const { mapAsync } = GPUBuffer.prototype
  GPUBuffer.prototype.mapAsync = function (...range) {
    counted.readbacks += 1
    return mapAsync.apply(this, range)
  }
}
