/**
 * @module
 * What an answer cost, as its body reports it: OpenAI's token counts, and beside them the experts and the time.
 */
import type { GenerateUsage } from '@sparsedge/engine/request'
import type { ExpertUsage } from '@sparsedge/engine/residency/usage'

/** `usage` of an answer, over all its choices. */
export function usageOf(usages: readonly GenerateUsage[], byLayer: boolean) {
  const experts = usages.map((usage) => usage.experts)
  const prompt = sum(usages, (usage) => usage.promptTokens)
  const completion = sum(usages, (usage) => usage.completionTokens)
  return {
    prompt_tokens: prompt,
    completion_tokens: completion,
    total_tokens: prompt + completion,
    experts: { ...expertsOf(experts), ...(byLayer && { layers: layersOf(experts) }) },
  }
}

function expertsOf(usages: readonly ExpertUsage[]) {
  const activated = sum(usages, (usage) => usage.activated)
  const chosen = sum(usages, (usage) => usage.chosen)
  return {
    /** Experts that ran, summed over layers and tokens, and their share of all. */
    activated,
    active_share: ratio(
      activated,
      sum(usages, (usage) => usage.possible),
    ),
    /** Share of the gates' choices that ran. */
    fidelity:
      chosen === 0
        ? 1
        : ratio(
            sum(usages, (usage) => usage.honoured),
            chosen,
          ),
    hits: sum(usages, (usage) => usage.hits),
    misses: sum(usages, (usage) => usage.misses),
    /** Fetched on a guess, and those of them that were needed. */
    prefetched: sum(usages, (usage) => usage.prefetched),
    prefetched_used: sum(usages, (usage) => usage.prefetchedUsed),
    wait_ms: round(
      sum(usages, (usage) => usage.waitMs),
      1,
    ),
    tiers: tiersOf(usages),
  }
}

/** A line for each layer. */
function layersOf(usages: readonly ExpertUsage[]) {
  const layers = Array.from(usages[0]?.layerHits.keys() ?? [])
  return layers.map((layer) => ({
    activated: sum(usages, (usage) => usage.layerActivated[layer]),
    hits: sum(usages, (usage) => usage.layerHits[layer]),
    misses: sum(usages, (usage) => usage.layerMisses[layer]),
    wait_ms: round(
      sum(usages, (usage) => usage.layerWaitMs[layer]),
      1,
    ),
  }))
}

/** Fetches that the answer caused, by the tier that served them. */
function tiersOf(usages: readonly ExpertUsage[]) {
  const tiers: Record<string, { requests: number; bytes: number }> = {}
  for (const usage of usages) {
    for (const [tier, { requests, bytes }] of usage.tiers) {
      tiers[tier] ??= { requests: 0, bytes: 0 }
      tiers[tier].requests += requests
      tiers[tier].bytes += bytes
    }
  }
  return tiers
}

/** Milliseconds of an answer's phases, over all its choices. */
export function phasesOf(usages: readonly GenerateUsage[]) {
  return {
    queue: sum(usages, (usage) => usage.queueMs),
    prefill: sum(usages, (usage) => usage.prefillMs),
    decode: sum(usages, (usage) => usage.decodeMs),
  }
}

/** `timings` of an answer. Deployed Workers advance their clock only at I/O, so there an unstreamed answer shows less. */
export function timingsOf(usages: readonly GenerateUsage[]) {
  const { prefill, decode } = phasesOf(usages)
  // A choice's first token comes out of its prefill.
  const decoded = sum(usages, (usage) => Math.max(usage.completionTokens - 1, 0))
  return {
    prefill_ms: round(prefill, 1),
    decode_ms: round(decode, 1),
    tokens_per_second: decode === 0 ? 0 : round((decoded * 1000) / decode, 1),
  }
}

/** The header `Server-Timing`, as browsers show it. @param phases milliseconds by name */
export function serverTiming(phases: Readonly<Record<string, number>>): string {
  return Object.entries(phases)
    .map(([name, milliseconds]) => `${name};dur=${round(milliseconds, 1)}`)
    .join(', ')
}

function sum<T>(items: readonly T[], value: (item: T) => number): number {
  return items.reduce((total, item) => total + value(item), 0)
}

const ratio = (part: number, whole: number): number => (whole === 0 ? 0 : round(part / whole, 4))
const round = (value: number, digits: number): number => Number(value.toFixed(digits))
