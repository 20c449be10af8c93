/**
 * @module
 * Everything that is measured, in order, into one report.
 */

import type { ExpertOptions } from '@sparsedge/engine/request'
import { EIGHT_BITS } from '../paths.ts'
import { prepareEightBits } from '../prepare.ts'
import { ALL, config, memoryFor, pack } from './backend.ts'
import { type Cold, type ColdFidelity, measureCold, measureColdFidelity } from './cold.ts'
import { type Fidelity, measureFidelity } from './fidelity.ts'
import { type Memory, MIB, measureMemory, WASM_MIB } from './memory.ts'
import { NAMES, type Policy } from './policies.ts'
import { simulate } from './simulate.ts'
import { measureOverhead, measureSpeed, type Overhead, type Speed } from './speed.ts'
import { recordTraces, type Trace } from './traces.ts'

export type Part = 'policies' | 'speed' | 'fidelity' | 'cold' | 'memory'

/** How much of everything. */
export interface Scale {
  /** Of every trace. */
  readonly traceTokens: number
  /** Rounds and tokens of the comparison with no residency. */
  readonly rounds: number
  readonly overheadTokens: number
  /** Milliseconds of store latency that one measurement of a speed may take, roughly: the farther, the fewer tokens. */
  readonly latencyBudgetMs: number
  /** Of every text that is judged. */
  readonly judgedTokens: number
  readonly coldPrompts: readonly number[]
  /** Contexts that are filled: with half of the experts, and with experts of 8 bits. */
  readonly memoryTokens: { readonly half: number; readonly eightBits: number }
}

export const FULL: Scale = {
  traceTokens: 200,
  rounds: 9,
  overheadTokens: 96,
  latencyBudgetMs: 15_000,
  judgedTokens: 96,
  coldPrompts: [16, 64, 256],
  memoryTokens: { half: 2048, eightBits: 1024 },
}
export const QUICK: Scale = {
  traceTokens: 32,
  rounds: 2,
  overheadTokens: 16,
  latencyBudgetMs: 3000,
  judgedTokens: 16,
  coldPrompts: [64],
  memoryTokens: { half: 192, eightBits: 192 },
}

/** The line, and the distances of its other end. */
export const BYTES_PER_MS = 100_000
export const FIRST_BYTES_MS = [10, 30, 100] as const
/** The distance of the targets. */
export const TARGET_MS = 30
/** What a cold prompt that is in a hurry waits for experts. */
const HURRY_MS = 150
const SEED = 1

/** Policies of every arena, and the arenas of the targets. */
export const CURVES = ['LRU', 'LFU', 'ours', 'optimum'] as const satisfies readonly Policy[]
export const JUDGED = [1 / 3, 0.5] as const

/** Slots of a share of all experts. */
export const slotsOf = (share: number): number => Math.round(share * ALL)

export interface Curve {
  readonly trace: string
  readonly tokens: number
  readonly policy: Policy
  readonly slots: number
  readonly hits: number
  readonly misses: number
}

export interface Measured {
  /** Mean slots that a decoded token uses. */
  readonly workingSet: number
  readonly expertBytes: number
  readonly all: number
  readonly curves: readonly Curve[]
  readonly overhead?: Overhead
  readonly speeds: readonly Speed[]
  readonly fidelities: readonly Fidelity[]
  readonly colds: readonly Cold[]
  readonly coldFidelity?: ColdFidelity
  readonly memories: readonly Memory[]
}

export async function measureAll(parts: readonly Part[], scale: Scale): Promise<Measured> {
  const say = (what: string) => console.error(`${what} …`)
  const has = (part: Part) => parts.includes(part)
  say('recording traces')
  const traces = await recordTraces(scale.traceTokens)
  const workingSet = meanRouted(traces)
  const curves: Curve[] = []
  if (has('policies')) {
    for (const trace of traces) {
      say(trace.name)
      for (const slots of arenas(workingSet)) {
        // Some are only there to judge others by.
        const judged = JUDGED.some((share) => slotsOf(share) === slots)
        for (const policy of judged ? NAMES : CURVES) {
          const outcome = simulate(trace, policy, slots)
          curves.push({ trace: trace.name, tokens: trace.decode.length, policy, slots, ...outcome })
        }
      }
    }
  }
  const measured = { workingSet, expertBytes: pack.manifest.experts.bytes, all: ALL, curves }
  const speeds = has('speed') ? await measureSpeeds(scale, say) : { speeds: [] }
  const fidelities: Fidelity[] = []
  if (has('fidelity')) {
    for (const share of [0.5, 0.7, 0.85]) {
      say(`resident_first with ${100 * share} % of the experts`)
      fidelities.push(await measureFidelity(slotsOf(share), distance(TARGET_MS), scale.judgedTokens))
    }
  }
  const colds = has('cold') ? await measureColds(scale, say) : { colds: [] }
  const memories = has('memory') ? await measureMemories(scale, say) : []
  return { ...measured, ...speeds, fidelities, ...colds, memories }
}

const distance = (firstByteMs: number) => ({ seed: SEED, firstByteMs, bytesPerMs: BYTES_PER_MS })

/** From the smallest arena to all experts; a token's working set is one of them. */
function arenas(workingSet: number): number[] {
  const floor = 2 * config.experts
  const sizes = [
    floor,
    slotsOf(1 / 6),
    slotsOf(1 / 3),
    slotsOf(0.5),
    workingSet,
    slotsOf(0.7),
    slotsOf(0.85),
    ALL,
  ]
  return sizes.map(Math.round).sort((a, b) => a - b)
}

function meanRouted(traces: readonly Trace[]): number {
  const steps = traces.flatMap(({ decode }) => decode)
  return steps.reduce((sum, step) => sum + step.reduce((n, { count }) => n + count, 0), 0) / steps.length
}

async function measureSpeeds(scale: Scale, say: (what: string) => void) {
  say('all experts resident, beside no residency at all')
  const overhead = await measureOverhead(scale.rounds, scale.overheadTokens)
  const speeds: Speed[] = []
  const add = async (
    share: number,
    firstByteMs: number | undefined,
    experts: Partial<ExpertOptions> = {},
  ) => {
    const { policy = 'exact', lookahead = true } = experts
    say(`${Math.round(100 * share)} % resident, ${firstByteMs ?? 0} ms to the first byte, ${policy}`)
    // Exact decoding with half of the experts waits for its fetches some 25 times a token.
    const waits = firstByteMs !== undefined && policy === 'exact' && share < 1
    const tokens = waits
      ? Math.max(Math.round(scale.latencyBudgetMs / (25 * firstByteMs)), 4)
      : scale.overheadTokens
    const far = firstByteMs === undefined ? {} : { distance: distance(firstByteMs) }
    speeds.push(await measureSpeed({ slots: slotsOf(share), ...far, experts: { policy, lookahead }, tokens }))
  }
  await add(1, undefined)
  for (const share of [1 / 3, 0.5, 0.7, 0.85]) {
    await add(share, undefined)
    await add(share, TARGET_MS)
    await add(share, TARGET_MS, { policy: 'resident_first' })
  }
  await add(0.5, undefined, { lookahead: false })
  for (const firstByteMs of FIRST_BYTES_MS) {
    if (firstByteMs !== TARGET_MS) await add(0.5, firstByteMs)
    await add(0.5, firstByteMs, { lookahead: false })
  }
  return { overhead, speeds }
}

async function measureColds(scale: Scale, say: (what: string) => void) {
  const colds: Cold[] = []
  const hurried = { policy: 'resident_first', lookahead: true, maxLatencyMs: HURRY_MS } as const
  // The first of all compiles the kernels; a Worker's are compiled when it is uploaded.
  await measureCold({ tokens: 16, firstByteMs: 1, bytesPerMs: 10 * BYTES_PER_MS })
  for (const tokens of scale.coldPrompts) {
    for (const firstByteMs of FIRST_BYTES_MS) {
      say(`cold, a prompt of ${tokens}, ${firstByteMs} ms to the first byte`)
      colds.push(await measureCold({ tokens, firstByteMs, bytesPerMs: BYTES_PER_MS }))
      if (firstByteMs !== TARGET_MS) continue
      colds.push(await measureCold({ tokens, firstByteMs, bytesPerMs: BYTES_PER_MS, experts: hurried }))
    }
  }
  say('the first token of a cold prompt in a hurry')
  const coldFidelity = await measureColdFidelity(64, distance(TARGET_MS), HURRY_MS)
  return { colds, coldFidelity }
}

async function measureMemories({ memoryTokens }: Scale, say: (what: string) => void): Promise<Memory[]> {
  say('packing the model with experts of 8 bits')
  await prepareEightBits()
  const { half, eightBits } = memoryTokens
  say(`${half} tokens in workerd with half of the experts`)
  const memoryMib = Math.floor(memoryFor(slotsOf(0.5), half) / MIB)
  const model = pack.manifest.name
  const halved = await measureMemory({ model, memoryMib, promptTokens: 128, contextTokens: half })
  say(`${eightBits} tokens in workerd with experts of 8 bits`)
  const large = { model: EIGHT_BITS, memoryMib: WASM_MIB, promptTokens: 128, contextTokens: eightBits }
  return [halved, await measureMemory(large)]
}
