/**
 * @module
 * What a request allows to be fetched for it. A fetch is booked before it is queued, so that what is under way counts.
 */
import { SparsedgeError } from '../errors.ts'
import type { Account } from './residency.ts'

/** What a request is out of. */
export type Spent = 'bytes' | 'fetches' | 'time'

/** Books a fetch. @returns what the request does not allow more of, in which case nothing is booked */
export function book({ options, usage }: Account, bytes: number): Spent | undefined {
  if (usage.bytes + bytes > (options.maxBytes ?? Number.POSITIVE_INFINITY)) return 'bytes'
  if (usage.requests + 1 > (options.maxFetches ?? Number.POSITIVE_INFINITY)) return 'fetches'
  usage.bytes += bytes
  usage.requests += 1
  return undefined
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

/**
 * Milliseconds since `started`; all of `limit` once `late`, its timer, has fired, which it may a little early: the rest
 * would start fetches that are given up at once.
 */
export function waited(started: number, limit = 0, late?: AbortSignal): number {
  return Math.max(performance.now() - started, late?.aborted ? limit : 0)
}

/** For a request that does not go on without what it is out of. */
export function budgetSpent({ usage }: Account, spent: Spent): SparsedgeError {
  const advice = 'try again when more experts are resident, or ask for the policy resident_first'
  if (spent === 'fetches') {
    const message = `${usage.requests} fetches of experts were not enough, and one answer gets no more; ${advice}`
    return new SparsedgeError('expert_fetches_spent', message)
  }
  const cost = spent === 'bytes' ? `${usage.bytes} bytes` : `${Math.ceil(usage.waitMs)} ms`
  const message = `the request has spent ${cost} on experts and its own limit allows no more; raise it, ${advice}`
  return new SparsedgeError('expert_budget_spent', message)
}
