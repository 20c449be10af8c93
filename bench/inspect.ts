/**
 * @module
 * Looks into the engine in Node, on the relaxed kernels: where a token's time goes, how many bytes it reads and what it
 * allocates. `node --expose-gc inspect.ts <prompt tokens as JSON>`; prints JSON.
 *
 * The parts of the WASM backend are put together here as engine/src/backends/wasm/index.ts does, with a clock around each
 * kernel.
 */
import { readFile } from 'node:fs/promises'
import { createEngine, GREEDY } from '@sparsedge/engine'
import type { Backend } from '@sparsedge/engine/backends/backend'
import { writeDescriptor } from '@sparsedge/engine/backends/wasm/descriptor'
import { wasmBackend } from '@sparsedge/engine/backends/wasm/index'
import { type Plan, planMemory } from '@sparsedge/engine/backends/wasm/plan'
import { type Kernels, selectKernels, type WasmModules } from '@sparsedge/engine/backends/wasm/select'
import { PagePool } from '@sparsedge/engine/backends/wasm/sequence'
import { Stepper } from '@sparsedge/engine/backends/wasm/step'
import { gateRule } from '@sparsedge/engine/model/selection'
import { BLOCK, planeBytes, TILE_BYTES, TILE_ROWS } from '@sparsedge/engine/pack/layout'
import { loadTrunk } from '@sparsedge/engine/pack/load'
import { type Manifest, parseManifest, tensorBytes } from '@sparsedge/engine/pack/manifest'
import { DEFAULT_EXPERTS } from '@sparsedge/engine/request'
import { createResidency } from '@sparsedge/engine/residency/arena'
import { fsStore } from '@sparsedge/engine/store/fs'
import { CONTEXT_TOKENS, MEMORY_BYTES } from './hosts/ours.ts'
import { KERNELS, PACKS, SHIPPED, TEACHER } from './paths.ts'

export const PHASES = ['attention', 'gate', 'experts', 'head', 'JavaScript'] as const
export type Phase = (typeof PHASES)[number]

export interface Look {
  readonly model: string
  /** Tokens before the first that was decoded. */
  readonly context: number
  /** Microseconds of a decoded token, medians. */
  readonly phases: Readonly<Record<Phase, number>>
  /** Milliseconds of the whole prompt. */
  readonly prefillPhases: Readonly<Record<Phase, number>>
  /** Experts that ran / experts, mean over the decoded tokens. */
  readonly activeShare: number
  /** Tiles of the head whose second plane was read, mean. */
  readonly refinedTiles: number
  /** Bytes that a decoded token reads, mean: weights, scales, keys and values. */
  readonly bytes: number
}

export interface Allocations {
  readonly model: string
  /** Bytes on the JavaScript heap of a decoded token: of a step of the backend, and of the whole engine. */
  readonly step: number
  readonly engine: number
}

/** What a step of several tokens costs: whether weights that are read once for several are worth having. */
export interface Together {
  readonly model: string
  readonly tokens: number
  /** Median. */
  readonly ms: number
}

export interface Inspection {
  readonly looks: readonly Look[]
  readonly allocations: readonly Allocations[]
  readonly together: readonly Together[]
}

/** Which phase a kernel's time belongs to. */
const PHASE_OF: Partial<Record<keyof Kernels, Phase>> = {
  begin: 'attention',
  attention: 'attention',
  ffnInput: 'gate',
  gate: 'gate',
  experts: 'experts',
  head: 'head',
}
const DECODED = 64
/** Until V8 has compiled everything for good; before, numbers that do not fit 31 bits are objects. */
const WARM = 5 * DECODED
/** Tokens after a forced collection of garbage until V8 has compiled again what that threw away: one search for the likeliest
 * of 49,152 logits in the interpreter makes as many objects. */
const SETTLED = 3 * DECODED
const REFINED_RANGE = 10

const store = fsStore(PACKS)

async function modules(): Promise<WasmModules> {
  const compile = async (path: string) => WebAssembly.compile(new Uint8Array(await readFile(path)))
  return { plain: await compile(KERNELS.plain), relaxed: await compile(KERNELS.relaxed) }
}

/** A backend whose kernels are timed. */
class Instrumented {
  readonly manifest: Manifest
  readonly stepper: Stepper
  readonly pool: PagePool
  /** Milliseconds since the last `take`. */
  readonly spent: Record<Phase, number> = { attention: 0, gate: 0, experts: 0, head: 0, JavaScript: 0 }
  readonly #plan: Plan
  readonly #memory: WebAssembly.Memory

  constructor(manifest: Manifest, plan: Plan, memory: WebAssembly.Memory, kernels: Kernels) {
    this.manifest = manifest
    this.#plan = plan
    this.#memory = memory
    const { offset, bytes, slotBytes } = plan.arena
    const arena = new Uint8Array(memory.buffer, offset, bytes)
    const residency = createResidency({ manifest, store, arena, slotBytes })
    this.stepper = new Stepper(manifest.config, plan, memory, this.#timed(kernels), residency)
    this.pool = new PagePool(plan.cache.pages)
  }

  static async open(model: string): Promise<Instrumented> {
    const manifest = parseManifest(await store.manifest(model))
    const plan = planMemory(manifest, MEMORY_BYTES, CONTEXT_TOKENS)
    const memory = new WebAssembly.Memory({ initial: plan.bytes / 65536, maximum: plan.bytes / 65536 })
    const { kernels } = selectKernels(await modules(), memory)
    kernels.bind(writeDescriptor(memory.buffer, manifest, plan))
    const { offset, bytes } = plan.trunk
    await loadTrunk(manifest, store, new Uint8Array(memory.buffer, offset, bytes))
    return new Instrumented(manifest, plan, memory, kernels)
  }

  /** The time of everything since the last call, and what of `total` was spent outside the kernels. */
  take(total: number): Record<Phase, number> {
    const { spent } = this
    spent.JavaScript = total - PHASES.reduce((sum, phase) => sum + spent[phase], 0)
    const taken = { ...spent }
    for (const phase of PHASES) spent[phase] = 0
    return taken
  }

  /** After a step: tiles of the head that were refined (engine/assembly/vocabulary.ts). */
  refinedTiles(): number {
    const { vocab } = this.manifest.config
    const head = headOf(this.manifest)
    if (head.layout !== 'q8') return 0
    const { tileBest } = this.#plan.scratch
    const best = new Float32Array(this.#memory.buffer, tileBest, Math.ceil(vocab / TILE_ROWS))
    const least = best.reduce((a, b) => Math.max(a, b)) - REFINED_RANGE
    return best.reduce((count, logit) => count + (logit >= least ? 1 : 0), 0)
  }

  #timed(kernels: Kernels): Kernels {
    const timed = { ...kernels }
    for (const name of ['begin', 'attention', 'ffnInput', 'gate', 'experts', 'head'] as const) {
      const phase = PHASE_OF[name]
      if (!phase) continue
      const kernel: (a: number, b: number, c: number) => unknown = kernels[name]
      const { spent } = this
      const around = (a: number, b: number, c: number): unknown => {
        const start = performance.now()
        const result = kernel(a, b, c)
        spent[phase] += performance.now() - start
        return result
      }
      Object.assign(timed, { [name]: around })
    }
    return timed
  }
}

const headOf = ({ config, trunk }: Manifest) => {
  const head = trunk.tensors.find(({ name }) => name === (config.tiedHead ? 'embed' : 'head'))
  if (!head) throw new Error('the pack has no head')
  return head
}

/** Bytes that one decoded token reads. */
function tokenBytes(manifest: Manifest, activeShare: number, refinedTiles: number, context: number): number {
  const { config, experts, trunk } = manifest
  const head = headOf(manifest)
  let bytes = 0
  for (const tensor of trunk.tensors) {
    if (tensor === head) bytes += planeBytes(head.shape[0], head.shape[1])
    // Of a table of its own, and of its scales, one row is read.
    else if (!tensor.name.startsWith('embed') || config.tiedHead) bytes += tensorBytes(tensor)
  }
  bytes += refinedTiles * (config.hidden / BLOCK) * TILE_BYTES
  bytes += activeShare * config.layers * config.experts * experts.bytes
  // A code a component and a float a head, for keys and for values.
  return bytes + context * config.layers * config.kvHeads * 2 * (config.headDim + 4)
}

async function look(engine: Instrumented, prompt: readonly number[]): Promise<Look> {
  const { manifest, stepper, pool } = engine
  const experts = { rule: gateRule(manifest.config), options: DEFAULT_EXPERTS }
  const sequence = pool.open(prompt.length + DECODED, experts)
  const one = new Int32Array(1)
  let start = performance.now()
  let logits = await stepper.step(sequence, Int32Array.from(prompt), undefined)
  const prefillPhases = engine.take(performance.now() - start)
  const { activated, possible } = sequence.usage
  const times: Record<Phase, number>[] = []
  let refined = 0
  for (let i = 0; i < DECODED; i++) {
    one[0] = argmax(logits)
    start = performance.now()
    logits = await stepper.step(sequence, one, undefined)
    times.push(engine.take(performance.now() - start))
    refined += engine.refinedTiles()
  }
  sequence.close()
  const activeShare = (sequence.usage.activated - activated) / (sequence.usage.possible - possible)
  const refinedTiles = refined / DECODED
  const phases = { ...prefillPhases }
  for (const phase of PHASES) phases[phase] = 1000 * median(times.map((time) => time[phase]))
  const context = prompt.length
  const bytes = tokenBytes(manifest, activeShare, refinedTiles, context + DECODED / 2)
  return { model: manifest.name, context, phases, prefillPhases, activeShare, refinedTiles, bytes }
}

async function openBackend(model: string): Promise<Backend> {
  const manifest = parseManifest(await store.manifest(model))
  const create = wasmBackend({
    modules: await modules(),
    contextTokens: CONTEXT_TOKENS,
    memoryBytes: MEMORY_BYTES,
  })
  return create({ manifest, store })
}

/** Growth of the heap over tokens in between two of which no garbage is collected (see the flags in run.ts). */
async function allocations(model: string, prompt: readonly number[]): Promise<Allocations> {
  const backend = await openBackend(model)
  const sequence = backend.open(CONTEXT_TOKENS)
  await backend.step(sequence, Int32Array.from(prompt))
  const one = Int32Array.of(prompt[0])
  const steps = () => {
    for (let i = 0; i < DECODED; i++) {
      if (backend.step(sequence, one) instanceof Promise) throw new Error('a step missed an expert')
    }
  }
  for (let i = 0; i < WARM; i += DECODED) steps()
  // Looking at the heap takes some of it, too.
  const step = growth(steps) - growth(() => {})

  const engine = await createEngine({ store, model, backend: async () => backend })
  sequence.close()
  const request = {
    prompt: { tokens: prompt },
    maxTokens: WARM + SETTLED + DECODED + 8,
    sampling: GREEDY,
    stop: [],
  }
  let before: number | undefined
  let collected = 0
  let first = 0
  let perToken = Number.NaN
  for await (const event of engine.generate(request)) {
    if (event.type !== 'text') continue
    if (collected === 0 && event.tokens >= WARM) {
      globalThis.gc?.()
      collected = event.tokens
    } else if (before === undefined && collected > 0 && event.tokens >= collected + SETTLED) {
      first = event.tokens
      before = process.memoryUsage().heapUsed
    } else if (before !== undefined && event.tokens >= first + DECODED) {
      perToken = (process.memoryUsage().heapUsed - before) / (event.tokens - first)
      break
    }
  }
  return { model, step: step / DECODED, engine: perToken }
}

/** Of one sequence, after a prompt; tokens of several sequences would share the weights in the same way. */
async function together(model: string, prompt: readonly number[]): Promise<Together[]> {
  const backend = await openBackend(model)
  const sequence = backend.open(CONTEXT_TOKENS)
  await backend.step(sequence, Int32Array.from(prompt))
  const rows: Together[] = []
  for (const tokens of [1, 2, 3, 4, 8]) {
    const step = Int32Array.from(prompt.slice(0, tokens))
    const times: number[] = []
    for (let i = 0; i < 15; i++) {
      const start = performance.now()
      await backend.step(sequence, step)
      times.push(performance.now() - start)
    }
    rows.push({ model, tokens, ms: median(times) })
  }
  sequence.close()
  return rows
}

function growth(work: () => void): number {
  globalThis.gc?.()
  const before = process.memoryUsage().heapUsed
  work()
  return process.memoryUsage().heapUsed - before
}

function argmax(logits: Float32Array): number {
  let best = 0
  for (let i = 1; i < logits.length; i++) if (logits[i] > logits[best]) best = i
  return best
}

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[values.length >> 1]
}

if (import.meta.main) {
  const prompt: number[] = JSON.parse(process.argv[2])
  const looks: Look[] = []
  for (const model of [TEACHER, SHIPPED]) {
    const engine = await Instrumented.open(model)
    await look(engine, prompt.slice(0, 128))
    for (const context of [128, 512, 1024]) looks.push(await look(engine, prompt.slice(0, context)))
  }
  const allocated = [
    await allocations(TEACHER, prompt.slice(0, 512)),
    await allocations(SHIPPED, prompt.slice(0, 512)),
  ]
  const shared = [
    ...(await together(TEACHER, prompt.slice(0, 512))),
    ...(await together(SHIPPED, prompt.slice(0, 512))),
  ]
  console.log(JSON.stringify({ looks, allocations: allocated, together: shared } satisfies Inspection))
}
