/**
 * @module
 * What residency costs in time: nothing where all experts are resident, and where they are not, what the store's distance
 * makes unavoidable. A text is read token by token, so that everything compared does the same work.
 */
import { setImmediate } from 'node:timers/promises'
import type { Backend } from '@sparsedge/engine/backends/backend'
import { DEFAULT_EXPERTS, type ExpertOptions } from '@sparsedge/engine/request'
import type { ArenaResidency } from '@sparsedge/engine/residency/arena'
import type { ExpertUsage } from '@sparsedge/engine/residency/usage'
import { type Distance, faultyStore } from '@sparsedge/engine/store/faulty'
import { median } from '../tables.ts'
import { ALL, openBackend, pack } from './backend.ts'
import { promptOf } from './traces.ts'

/** Tokens read before the clock starts; they fill the arena. */
const PREFIX = 64

export interface Speed {
  readonly slots: number
  /** Absent: the pack is in memory. */
  readonly firstByteMs?: number
  readonly policy: ExpertOptions['policy']
  readonly lookahead: boolean
  /** Of a token, mean. */
  readonly ms: number
  readonly waitMs: number
  readonly misses: number
  readonly requests: number
  readonly bytes: number
  readonly fidelity: number
}

export interface Overhead {
  /** Tokens a second with all experts resident / without any residency, medians of rounds. */
  readonly ratio: number
  /** Tokens a second, all resident. */
  readonly speed: number
}

export interface SpeedPlan {
  readonly slots: number
  readonly distance?: Distance
  readonly experts?: Partial<ExpertOptions>
  readonly tokens: number
}

export async function measureSpeed({ slots, distance, experts, tokens }: SpeedPlan): Promise<Speed> {
  const store = distance ? faultyStore(pack.store, distance) : pack.store
  const backend = await openBackend(slots, store)
  const options = { ...DEFAULT_EXPERTS, ...experts }
  const ids = await promptOf(PREFIX + tokens)
  const sequence = backend.open(ids.length, options)
  await backend.step(sequence, ids.subarray(0, PREFIX))
  const before = sumsOf(sequence.usage)
  const started = performance.now()
  for (let i = PREFIX; i < ids.length; i++) {
    await backend.step(sequence, ids.subarray(i, i + 1))
    // As between the steps of every request: what has arrived gets its turn.
    await setImmediate()
  }
  const ms = performance.now() - started
  const after = sumsOf(sequence.usage)
  const each = (field: keyof typeof after) => (after[field] - before[field]) / tokens
  sequence.close()
  return {
    slots,
    ...(distance?.firstByteMs !== undefined && { firstByteMs: distance.firstByteMs }),
    policy: options.policy,
    lookahead: options.lookahead,
    ms: ms / tokens,
    waitMs: each('waitMs'),
    misses: each('misses'),
    requests: each('requests'),
    bytes: each('bytes'),
    fidelity: each('honoured') / each('chosen'),
  }
}

/** What is counted, at a moment. */
export function sumsOf({ waitMs, misses, requests, bytes, chosen, honoured }: ExpertUsage) {
  return { waitMs, misses, requests, bytes, chosen, honoured }
}

/** All experts resident, beside the same slots with nobody asked for them; in turns, as the machine's speed drifts. */
export async function measureOverhead(rounds: number, tokens: number): Promise<Overhead> {
  const ids = await promptOf(PREFIX + tokens)
  const withResidency = await openBackend(ALL, pack.store)
  const without = await openBackend(ALL, pack.store, fixed)
  for (const backend of [withResidency, without]) await backend.residency?.prewarm()
  const speeds: { readonly held: number; readonly bare: number }[] = []
  // Round 0 warms up.
  for (let round = 0; round <= rounds; round++) {
    const pair = { held: 0, bare: 0 }
    const first = round % 2 === 0
    pair[first ? 'held' : 'bare'] = await readingSpeed(first ? withResidency : without, ids)
    pair[first ? 'bare' : 'held'] = await readingSpeed(first ? without : withResidency, ids)
    if (round > 0) speeds.push(pair)
  }
  return {
    ratio: median(speeds.map(({ held, bare }) => held / bare)),
    speed: median(speeds.map(({ held }) => held)),
  }
}

/** Tokens a second. */
async function readingSpeed(backend: Backend, ids: Int32Array): Promise<number> {
  const sequence = backend.open(ids.length)
  await backend.step(sequence, ids.subarray(0, PREFIX))
  const started = performance.now()
  for (let i = PREFIX; i < ids.length; i++) {
    const logits = backend.step(sequence, ids.subarray(i, i + 1))
    if (logits instanceof Promise) await logits
    await setImmediate()
  }
  const elapsed = performance.now() - started
  sequence.close()
  return (1000 * (ids.length - PREFIX)) / elapsed
}

/** The slots as they are once all experts have come, and no questions asked. */
function fixed(inner: ArenaResidency): ArenaResidency {
  return {
    slots: inner.slots,
    capacity: inner.capacity,
    resident: ALL,
    acquire: () => undefined,
    release: () => {},
    prefetch: () => {},
    anticipate: () => {},
    snapshot: () => inner.snapshot(),
    prewarm: (...args) => inner.prewarm(...args),
  }
}
