/**
 * @module
 * What every runtime with a GPU runs: tokens through the WASM and the WebGPU backend side by side, and a device that is
 * destroyed while it answers. Readbacks are counted where they are asked for, whoever asks.
 */
import { createEngine, type Engine } from '@sparsedge/engine'
import type { Backend, BackendFactory } from '@sparsedge/engine/backends/backend'
import { namedBackend } from '@sparsedge/engine/backends/named'
import { type WasmModules, wasmBackend } from '@sparsedge/engine/backends/wasm/index'
import { webgpuBackend } from '@sparsedge/engine/backends/webgpu'
import { Device, findAdapter } from '@sparsedge/engine/backends/webgpu/device'
import { Unpacker } from '@sparsedge/engine/backends/webgpu/unpack'
import { SparsedgeError } from '@sparsedge/engine/errors'
import { BLOCK, dequantise, encodePlane } from '@sparsedge/engine/pack/layout'
import { referenceBackend } from '@sparsedge/engine/reference'
import type { ShardStore } from '@sparsedge/engine/store/store'
import { argmax, divergence, logProbabilities } from '../../parity/divergence.ts'

export interface Kit {
  readonly store: ShardStore
  readonly modules: WasmModules
  /** Where onnxruntime's files are. */
  readonly onnxruntimePath?: string
}

/** How far one backend is from another. */
export interface Distance {
  /** Share of tokens after which both find the same one likeliest. */
  readonly top1: number
  /** Mean divergence, in nats. */
  readonly kl: number
  /** Difference of the shares of experts that ran. */
  readonly share: number
}

/** Forced decoding of a model: the same tokens, one at a time, through three backends. */
export interface Forced {
  readonly model: string
  readonly tokens: number
  /** WebGPU from the reference; the reference from WASM; WebGPU from WASM. */
  readonly reference: Distance
  readonly wasm: Distance
  readonly between: Distance
  /** Experts that had to be fetched. */
  readonly misses: number
  /** Of the first prompt again, once all experts are there: readbacks a token, experts that had to be fetched, and the share
   * of steps whose logits have the same bits as before. */
  readonly readbacks: number
  readonly missesWhenResident: number
  readonly sameWhenResident: number
}

/** Prompts in one step each, which onnxruntime runs, and tokens after them one at a time, which our kernels do, on the same
 * keys and values: WebGPU from the reference. */
export interface Prompted extends Distance {
  readonly model: string
}

export interface Generated {
  readonly text: string
  readonly backend: string
}

export interface GpuResult {
  readonly adapter: string
  readonly forced: readonly Forced[]
  readonly prompted: readonly Prompted[]
  /** Greedy decoding of 64 tokens: how often was read back, and whether the tokens are the reference's. */
  readonly ahead: { readonly readbacks: number; readonly same: boolean }
  /** With nothing resident and nothing allowed to be fetched: how a prompt fails that insists on its experts, and how many of
   * its choices one gets that does not. */
  readonly limits: { readonly exact: string; readonly fidelity: number }
  /** The largest error of a weight that was unpacked from a tile, in units of R · s: where the zero point lies within the
   * block's range or a little beyond, and where it is farther away than any packer would put it. */
  readonly unpacked: { readonly near: number; readonly far: number }
  readonly text: { readonly wasm: Generated; readonly webgpu: Generated; readonly lost: Generated }
  /** Codes of the failures that were provoked. */
  readonly codes: { readonly sequence: string; readonly tensor: string; readonly lost: string }
}

/** Two prompts for each model. */
const STARTS = [11, 200]
const CONTEXT = 256
const FORCED_TOKENS = 64
const PROMPTED_TOKENS = 40
const GENERATED_TOKENS = 24

const counted = { readbacks: 0 }
const devices: GPUDevice[] = []

export async function gpuProbe(kit: Kit, models: readonly string[]): Promise<GpuResult> {
  watch()
  const adapter = await findAdapter()
  const { vendor, architecture, description } = adapter.info
  // An adapter is good for one device.
  const spare = await Device.open(adapter)
  const forced: Forced[] = []
  const prompted: Prompted[] = []
  let ahead: GpuResult['ahead'] | undefined
  let codes: GpuResult['codes'] | undefined
  let limits: GpuResult['limits'] | undefined
  // Making a backend takes longer than running it, on a software adapter: each is used for all that it is good for.
  for (const model of models) {
    const reference = await open(kit, model, referenceBackend())
    const webgpu = await open(kit, model, webgpuBackend({ contextTokens: CONTEXT, ...pathOf(kit) }))
    const device = devices[devices.length - 1]
    limits ??= await limit(webgpu)
    forced.push(await force(kit, model, reference, webgpu))
    prompted.push({ model, ...(await prompt(reference, webgpu)) })
    ahead ??= await runAhead(reference, webgpu)
    codes ??= await provoke(spare, webgpu, device)
  }
  if (!ahead || !codes || !limits) throw new Error('there is no model')
  return {
    adapter: [vendor, architecture, description].filter(Boolean).join(' '),
    forced,
    prompted,
    ahead,
    codes,
    limits,
    unpacked: await unpack(spare),
    text: await lose(kit, models[0]),
  }
}

async function limit(webgpu: Backend): Promise<GpuResult['limits']> {
  const prompt = Int32Array.of(5, 17, 3)
  const open = (policy: 'exact' | 'resident_first') =>
    webgpu.open(8, { policy, lookahead: false, maxFetches: 0 })
  const [exact, first] = [open('exact'), open('resident_first')]
  const code = await codeOf(() => webgpu.step(exact, prompt))
  await webgpu.step(first, prompt)
  return { exact: code, fidelity: first.usage.fidelity }
}

async function force(kit: Kit, model: string, reference: Backend, webgpu: Backend): Promise<Forced> {
  const wasm = await open(kit, model, wasmBackend({ modules: kit.modules, contextTokens: CONTEXT }))
  const backends = [reference, wasm, webgpu]
  const pairs = [new Comparison(0, 2), new Comparison(1, 0), new Comparison(1, 2)]
  const bits: Float32Array[] = []
  let misses = 0
  for (const start of STARTS) {
    const sequences = backends.map((backend) => backend.open(FORCED_TOKENS))
    for (const token of forcedTokens(start, webgpu)) {
      const logits: Float32Array[] = []
      for (const [i, backend] of backends.entries()) logits.push(await backend.step(sequences[i], token))
      for (const pair of pairs) pair.add(logits)
      bits.push(Float32Array.from(logits[2]))
    }
    for (const pair of pairs) pair.addShares(sequences.map(({ usage }) => usage.activeShare))
    misses += sequences[2].usage.misses
    for (const sequence of sequences) sequence.close()
  }
  await webgpu.residency?.prewarm()
  const before = counted.readbacks
  const sequence = webgpu.open(FORCED_TOKENS)
  let same = 0
  for (const token of forcedTokens(STARTS[0], webgpu)) {
    const logits = await webgpu.step(sequence, token)
    const earlier = bits[sequence.length - 1]
    if (logits.every((value, i) => Object.is(value, earlier[i]))) same += 1
  }
  sequence.close()
  const [fromReference, ofWasm, between] = pairs.map((pair) => pair.distance())
  return {
    model,
    tokens: bits.length,
    reference: fromReference,
    wasm: ofWasm,
    between,
    misses,
    readbacks: (counted.readbacks - before) / FORCED_TOKENS,
    sameWhenResident: same / FORCED_TOKENS,
    missesWhenResident: sequence.usage.misses,
  }
}

async function prompt(reference: Backend, webgpu: Backend): Promise<Distance> {
  const comparison = new Comparison(0, 1)
  for (const start of STARTS) {
    const tokens = Int32Array.from([...forcedTokens(start, webgpu)].flatMap((token) => [...token]))
    const both = [reference, webgpu].map((backend) => ({ backend, sequence: backend.open(FORCED_TOKENS) }))
    for (let at = 0; at < FORCED_TOKENS; ) {
      const end = Math.max(at + 1, PROMPTED_TOKENS)
      const logits: Float32Array[] = []
      for (const { backend, sequence } of both) {
        logits.push(await backend.step(sequence, tokens.subarray(at, end)))
      }
      comparison.add(logits)
      at = end
    }
    comparison.addShares(both.map(({ sequence }) => sequence.usage.activeShare))
    for (const { sequence } of both) sequence.close()
  }
  return comparison.distance()
}

function* forcedTokens(start: number, { config }: Backend): Generator<Int32Array> {
  for (let i = 0; i < FORCED_TOKENS; i++) yield Int32Array.of((start + i * 37) % config.vocab)
}

/** Two of several backends, token by token. */
class Comparison {
  readonly #a: number
  readonly #b: number
  #tokens = 0
  #same = 0
  #kl = 0
  readonly #shares: number[] = []

  constructor(a: number, b: number) {
    this.#a = a
    this.#b = b
  }

  add(logits: readonly Float32Array[]): void {
    const [p, q] = [logits[this.#a], logits[this.#b]]
    this.#tokens += 1
    if (argmax(p) === argmax(q)) this.#same += 1
    this.#kl += divergence(logProbabilities(p), logProbabilities(q))
  }

  addShares(shares: readonly number[]): void {
    this.#shares.push(shares[this.#b] - shares[this.#a])
  }

  distance(): Distance {
    const share = this.#shares.reduce((sum, each) => sum + each, 0) / this.#shares.length
    return { top1: this.#same / this.#tokens, kl: this.#kl / this.#tokens, share }
  }
}

async function runAhead(reference: Backend, webgpu: Backend): Promise<GpuResult['ahead']> {
  const run = async (backend: Backend) => {
    const sequence = backend.open(80)
    let logits = await backend.step(sequence, Int32Array.of(5, 17, 3))
    const before = counted.readbacks
    const tokens: number[] = []
    while (tokens.length < 64) {
      tokens.push(argmax(logits))
      logits = await backend.step(sequence, Int32Array.of(tokens[tokens.length - 1]))
    }
    sequence.close()
    return { tokens, readbacks: counted.readbacks - before }
  }
  const [expected, actual] = [await run(reference), await run(webgpu)]
  return { readbacks: actual.readbacks, same: expected.tokens.join() === actual.tokens.join() }
}

/** One plane with every zero point that there is, each with every code. */
async function unpack(device: Device): Promise<GpuResult['unpacked']> {
  const [rows, cols] = [256, BLOCK]
  const plane = {
    codes: Uint8Array.from({ length: rows * cols }, (_, i) => i % 16),
    scales: new Uint8Array(rows).fill(3),
    zeros: Uint8Array.from({ length: rows }, (_, row) => row),
  }
  const tiles = encodePlane(plane, rows, cols)
  const rowScales = new Float32Array(rows).fill(0.5)
  const { STORAGE, COPY_DST, COPY_SRC, MAP_READ } = GPUBufferUsage
  const source = device.buffer(tiles.length + rowScales.byteLength, STORAGE | COPY_DST)
  device.gpu.queue.writeBuffer(source, 0, tiles)
  device.gpu.queue.writeBuffer(source, tiles.length, rowScales)
  const into = {
    codes: device.buffer(rows * cols, STORAGE | COPY_SRC),
    scales: device.buffer(4 * rows, STORAGE | COPY_SRC),
    rows,
    blocks: 1,
    planes: 1 as const,
  }
  const place = { into, rows, blocks: 1, row: 0, block: 0, tiles: 0, rowScales: tiles.length / 4, factor: 1 }
  new Unpacker(device).place(source, [place])
  const back = device.gpu.createBuffer({ size: rows * (cols + 4), usage: COPY_DST | MAP_READ })
  const encoder = device.gpu.createCommandEncoder()
  encoder.copyBufferToBuffer(into.codes, 0, back, 0, rows * cols)
  encoder.copyBufferToBuffer(into.scales, 0, back, rows * cols, 4 * rows)
  device.gpu.queue.submit([encoder.finish()])
  await back.mapAsync(GPUMapMode.READ)
  const range = back.getMappedRange()
  const codes = new Uint8Array(range, 0, rows * cols)
  const scales = new Float32Array(range, rows * cols)
  const worst = { near: 0, far: 0 }
  for (const [i, weight] of dequantise('q4', tiles, rowScales, rows, cols).entries()) {
    const row = Math.floor(i / cols)
    const error = Math.abs(scales[row] * (codes[i] - 128) - weight) / (rowScales[row] * plane.scales[row])
    const which = plane.zeros[row] <= 128 ? 'near' : 'far'
    worst[which] = Math.max(worst[which], error)
  }
  return worst
}

/** An answer on WASM; one on the GPU; and that again, while the GPU is destroyed after a third of it. */
async function lose(kit: Kit, model: string): Promise<GpuResult['text']> {
  const create = (name: 'wasm' | 'webgpu') =>
    createEngine({
      store: kit.store,
      model,
      backend: namedBackend(name, { modules: kit.modules, contextTokens: CONTEXT, ...pathOf(kit) }),
    })
  const wasm = await generate(await create('wasm'))
  const engine = await create('webgpu')
  const device = devices[devices.length - 1]
  const webgpu = await generate(engine)
  return {
    wasm,
    webgpu,
    lost: await generate(engine, (tokens) => tokens >= GENERATED_TOKENS / 3 && device.destroy()),
  }
}

async function generate(engine: Engine, onText: (tokens: number) => unknown = () => {}): Promise<Generated> {
  let text = ''
  const request = { prompt: { text: 'one and two' }, maxTokens: GENERATED_TOKENS, sampling: GREEDY, stop: [] }
  for await (const event of engine.generate(request)) {
    if (event.type !== 'text') continue
    text += event.text
    onText(event.tokens)
  }
  return { text, backend: engine.backend }
}

const GREEDY = {
  temperature: 0,
  topK: 0,
  topP: 1,
  minP: 0,
  // A text of one letter over and over would hide a place that is lost.
  repetitionPenalty: 2,
  presencePenalty: 0,
  frequencyPenalty: 0,
  // A tiny model likes its end token; the answer has to go on.
  logitBias: new Map([
    [0, -100],
    [1, -100],
    [2, -100],
  ]),
  seed: 0,
}

async function provoke(spare: Device, backend: Backend, device: GPUDevice): Promise<GpuResult['codes']> {
  const sequence = backend.open(8)
  return {
    sequence: await codeOf(() => backend.open(CONTEXT + 1)),
    tensor: await codeOf(() => spare.buffer(spare.gpu.limits.maxBufferSize + 16, GPUBufferUsage.STORAGE)),
    lost: await codeOf(async () => {
      device.destroy()
      await backend.step(sequence, Int32Array.of(1))
    }),
  }
}

async function codeOf(work: () => unknown): Promise<string> {
  try {
    await work()
    return 'none'
  } catch (error) {
    return error instanceof SparsedgeError ? error.code : String(error)
  }
}

async function open({ store }: Kit, model: string, factory: BackendFactory): Promise<Backend> {
  let building: Promise<Backend> | undefined
  await createEngine({
    store,
    model,
    backend: (pack, signal) => {
      building = factory(pack, signal)
      return building
    },
  })
  if (!building) throw new Error('createEngine built no backend')
  return building
}

function pathOf({ onnxruntimePath }: Kit) {
  return onnxruntimePath === undefined ? {} : { onnxruntimePath }
}

/** Counts readbacks, and keeps the devices that are opened. */
function watch(): void {
  const { mapAsync } = GPUBuffer.prototype
  GPUBuffer.prototype.mapAsync = function (...range) {
    counted.readbacks += 1
    return mapAsync.apply(this, range)
  }
  const { requestDevice } = GPUAdapter.prototype
  GPUAdapter.prototype.requestDevice = async function (...options) {
    const device = await requestDevice.apply(this, options)
    devices.push(device)
    return device
  }
}
