/**
 * @module
 * What a request allows to be fetched for it. A fetch is booked before it is queued, so that what is under way counts.
 */
import { SparsedgeError } from '../errors.ts'
import type { Account } from './residency.ts'

/** Books a fetch. @returns false, and books nothing, if the request does not allow one more */
export function book({ options, usage }: Account, bytes: number): boolean {
  if (usage.bytes + bytes > (options.maxBytes ?? Number.POSITIVE_INFINITY)) return false
  if (usage.requests + 1 > (options.maxFetches ?? Number.POSITIVE_INFINITY)) return false
  usage.bytes += bytes
  usage.requests += 1
  return true
}

/** A booked fetch was not made. */
export function giveBack({ usage }: Account, bytes: number): void {
  usage.bytes -= bytes
  usage.requests -= 1
}

/** Whole milliseconds, as timers take them, that the request may still wait; undefined where it has set no limit. */
export function patience({ options, usage }: Account): number | undefined {
  return options.maxLatencyMs === undefined
    ? undefined
    : Math.max(Math.ceil(options.maxLatencyMs - usage.waitMs), 0)
}

/** For a request whose limit is spent. */
export function budgetSpent({ usage }: Account): SparsedgeError {
  const spent = `${usage.requests} fetches, ${usage.bytes} bytes and ${Math.ceil(usage.waitMs)} ms`
  return new SparsedgeError(
    'expert_budget_spent',
    `the request has spent ${spent} on experts and its limits allow no more; ` +
      'raise them, try again when more experts are resident, or ask for the policy resident_first',
  )
}
