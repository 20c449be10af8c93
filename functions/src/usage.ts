/**
 * @module
 * What an answer cost, as its body reports it: OpenAI's token counts, and beside them the experts and the time.
 */
import type { GenerateUsage } from '@sparsedge/engine/request'

/** `usage` of an answer, over all its choices. */
export function usageOf(usages: readonly GenerateUsage[]) {
  const sum = (field: (usage: GenerateUsage) => number) =>
    usages.reduce((total, usage) => total + field(usage), 0)
  const prompt = sum((usage) => usage.promptTokens)
  const completion = sum((usage) => usage.completionTokens)
  const activated = sum(({ experts }) => experts.activated)
  const possible = sum(({ experts }) => experts.possible)
  return {
    prompt_tokens: prompt,
    completion_tokens: completion,
    total_tokens: prompt + completion,
    experts: {
      /** Experts that gates selected, summed over layers and tokens, and their share of all. */
      activated,
      active_share: possible === 0 ? 0 : round(activated / possible, 4),
      hits: sum(({ experts }) => experts.hits),
      misses: sum(({ experts }) => experts.misses),
      wait_ms: round(
        sum(({ experts }) => experts.waitMs),
        1,
      ),
      tiers: tiersOf(usages),
    },
  }
}

/** Fetches that the answer caused, by the tier that served them. */
function tiersOf(usages: readonly GenerateUsage[]) {
  const tiers: Record<string, { requests: number; bytes: number }> = {}
  for (const { experts } of usages) {
    for (const [tier, { requests, bytes }] of experts.tiers) {
      tiers[tier] ??= { requests: 0, bytes: 0 }
      tiers[tier].requests += requests
      tiers[tier].bytes += bytes
    }
  }
  return tiers
}

/** `timings` of an answer. Deployed Workers advance their clock only at I/O, so there an unstreamed answer shows less. */
export function timingsOf(usages: readonly GenerateUsage[]) {
  const prefill = usages.reduce((total, usage) => total + usage.prefillMs, 0)
  const decode = usages.reduce((total, usage) => total + usage.decodeMs, 0)
  // A choice's first token comes out of its prefill.
  const decoded = usages.reduce((total, usage) => total + Math.max(usage.completionTokens - 1, 0), 0)
  return {
    prefill_ms: round(prefill, 1),
    decode_ms: round(decode, 1),
    tokens_per_second: decode === 0 ? 0 : round((decoded * 1000) / decode, 1),
  }
}

const round = (value: number, digits: number): number => Number(value.toFixed(digits))
