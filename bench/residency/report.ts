/**
 * @module
 * From measurements to verdicts, and to tables.
 */
import { asMarkdown, asText, type Section, short, type Verdict, verdictSection } from '../tables.ts'
import { BYTES_PER_MS, type Curve, JUDGED, type Measured, slotsOf, TARGET_MS } from './measure.ts'
import { ISOLATE_MIB, MIB, WASM_MIB } from './memory.ts'
import { NAMES, type Policy } from './policies.ts'
import type { Speed } from './speed.ts'

export interface Report extends Measured {
  readonly date: string
  readonly machine: {
    readonly cpu: string
    readonly pinned: boolean
    readonly loadBefore: number
    readonly loadAfter: number
    readonly node: string
  }
  readonly verdicts: readonly Verdict[]
}

/** Connections at once. */
const LANES = 6

export function judge(measured: Measured): Verdict[] {
  const verdicts: Verdict[] = []
  const add = (
    what: string,
    value: number | undefined,
    target: number,
    better: Verdict['better'] = 'higher',
  ) => {
    if (value === undefined || Number.isNaN(value)) return
    verdicts.push({
      what,
      value,
      target,
      better,
      pass: better === 'higher' ? value >= target : value <= target,
    })
  }
  const traces = [...new Set(measured.curves.map(({ trace }) => trace))]
  for (const share of JUDGED) {
    const rates = traces.map((trace) => (policy: Policy) => hitRate(measured, trace, policy, slotsOf(share)))
    const worst = (of: (rate: Rates) => number) =>
      rates.length === 0 ? undefined : Math.min(...rates.map(of))
    const arena = `arena ${percent(share)}, worst trace`
    add(
      `hit rate : LRU's, ${arena}`,
      worst((rate) => rate('ours') / rate('LRU')),
      1,
    )
    add(
      `hit rate : LFU's, ${arena}`,
      worst((rate) => rate('ours') / rate('LFU')),
      1,
    )
    add(
      `hit rate : that of LFU by tokens, ${arena}`,
      worst((rate) => rate('ours') / rate('LFU by tokens')),
      1,
    )
    const closed = (rate: Rates) => gapClosed(rate, 'ours')
    add(`share of LFU's gap to the optimum closed, ${arena}`, worst(closed), 0.5)
  }
  add('decode, all resident : no residency', measured.overhead?.ratio, 0.98)
  const resident = measured.speeds.find(({ slots }) => slots === measured.all)
  for (const speed of measured.speeds) {
    const { slots, firstByteMs, policy, lookahead } = speed
    if (!resident || slots !== slotsOf(0.5) || firstByteMs === undefined) continue
    const how = `${firstByteMs} ms first byte${lookahead ? '' : ', no look-ahead'}`
    if (policy === 'exact') {
      add(
        `arena 50 %, exact, ${how}: wait : bound`,
        (speed.ms - resident.ms) / boundMs(speed, firstByteMs),
        1.2,
        'lower',
      )
    } else {
      add(`arena 50 %, resident_first, ${how}: speed : all resident`, resident.ms / speed.ms, 0.8)
      add(`arena 50 %, resident_first, ${how}: ms waited a token`, speed.waitMs, 0, 'lower')
    }
  }
  for (const { tokens, firstByteMs, policy, ms, boundMs } of measured.colds) {
    if (tokens !== 64 || firstByteMs !== TARGET_MS) continue
    const what = `cold, prompt of ${tokens}, ${firstByteMs} ms first byte`
    if (policy === 'exact') add(`${what}: first token : bound`, ms / boundMs, 1.25, 'lower')
    else add(`${what}, resident_first: first token, ms`, ms, 700, 'lower')
  }
  for (const { model, contextTokens, slots, all, wasmBytes, isolateBytes } of measured.memories) {
    const what = `${model}, ${contextTokens} tokens, ${percent(slots / all)} of the experts`
    add(`${what}: MiB of WebAssembly memory`, wasmBytes / MIB, WASM_MIB, 'lower')
    add(`${what}: MiB of the isolate`, isolateBytes / MIB, ISOLATE_MIB, 'lower')
  }
  return verdicts
}

/** Milliseconds a token that the store's distance makes unavoidable. */
function boundMs({ misses, bytes }: Speed, firstByteMs: number): number {
  return Math.max((misses * firstByteMs) / LANES, bytes / BYTES_PER_MS)
}

type Rates = (policy: Policy) => number

/** How far a policy comes on the way from LFU to the optimum. */
function gapClosed(rate: Rates, policy: Policy): number {
  return (rate(policy) - rate('LFU')) / (rate('optimum') - rate('LFU'))
}

function hitRate({ curves }: Measured, trace: string, policy: Policy, slots: number): number {
  const curve = curves.find((one) => one.trace === trace && one.policy === policy && one.slots === slots)
  return curve ? curve.hits / (curve.hits + curve.misses) : Number.NaN
}

/** Over all traces, token by token; those that only repeat others left out. */
export function overall(curves: readonly Curve[]) {
  const sums = new Map<
    string,
    { policy: Policy; slots: number; hits: number; misses: number; tokens: number }
  >()
  for (const { trace, policy, slots, hits, misses, tokens } of curves) {
    if (trace === 'all chats in a row') continue
    const key = `${policy} ${slots}`
    const sum = sums.get(key) ?? { policy, slots, hits: 0, misses: 0, tokens: 0 }
    sums.set(key, { ...sum, hits: sum.hits + hits, misses: sum.misses + misses, tokens: sum.tokens + tokens })
  }
  return [...sums.values()].map(({ policy, slots, hits, misses, tokens }) => ({
    policy,
    slots,
    rate: hits / (hits + misses),
    missesPerToken: misses / tokens,
  }))
}

export function table(report: Report): string {
  return asText(sections(report))
}

export function markdown(report: Report): string {
  const { date, machine, workingSet, expertBytes, all } = report
  return `# Residency

Written by \`npm run bench:residency\` on ${date}; \`npm run bench:residency -- --help\` says what it does. [residency.json](residency.json) has every number.

${machine.cpu}, ${machine.pinned ? 'everything pinned to one core' : 'nothing pinned to a core'}; load ${machine.loadBefore.toFixed(2)} before and ${machine.loadAfter.toFixed(2)} after; ${machine.node}. The shipped model has ${all} experts of ${expertBytes} bytes; a token uses ${workingSet.toFixed(0)} of them (${((workingSet * expertBytes) / 1e6).toFixed(1)} MB). Stores are memory behind [faulty.ts](../engine/src/store/faulty.ts): the first byte comes after the milliseconds that are named, then ${BYTES_PER_MS / 1000} MB/s over six connections together.

![Hit rate against the size of the arena](residency.svg)

${asMarkdown(sections(report))}`
}

function sections(report: Report): Section[] {
  const { curves, speeds, fidelities, colds, coldFidelity, memories, verdicts, expertBytes, all } = report
  const arena = (slots: number) => `${slots} (${percent(slots / all)})`
  const compute = speeds.find(({ slots }) => slots === all)?.ms
  const curveRows = overall(curves).map(({ policy, slots, rate, missesPerToken }) => {
    const bytes = missesPerToken * expertBytes
    const wait = Math.max((missesPerToken * TARGET_MS) / LANES, bytes / BYTES_PER_MS)
    return [
      arena(slots),
      policy,
      percent(rate, 1),
      missesPerToken.toFixed(1),
      (bytes / 1e6).toFixed(2),
      compute === undefined ? '' : short(1000 / (compute + wait)),
    ]
  })
  const traces = [...new Set(curves.map(({ trace }) => trace))]
  const traceRows = JUDGED.flatMap((share) =>
    traces.map((trace) => {
      const rate = (policy: Policy) => hitRate(report, trace, policy, slotsOf(share))
      const closed = (['ours', 'true rates'] as const).map((policy) => percent(gapClosed(rate, policy)))
      return [percent(share), trace, ...NAMES.map((policy) => percent(rate(policy), 1)), ...closed]
    }),
  )
  const speedRows = speeds.map(({ slots, firstByteMs, policy, lookahead, ...speed }) => [
    arena(slots),
    firstByteMs === undefined ? 'in memory' : `${firstByteMs} ms`,
    policy,
    lookahead ? 'on' : 'off',
    short(1000 / speed.ms),
    short(speed.ms),
    short(speed.waitMs),
    short(speed.misses),
    short(speed.requests),
    (speed.bytes / 1e6).toFixed(2),
    percent(speed.fidelity, 1),
  ])
  const fidelityRows = fidelities.map(({ slots, ...f }) => [
    arena(slots),
    f.kl.toFixed(3),
    percent(f.agreement, 1),
    f.perplexity.toFixed(2),
    f.exactPerplexity.toFixed(2),
    percent(f.fidelity, 1),
    (f.bytes / 1e6).toFixed(2),
    String(f.tokens),
  ])
  const coldRows = colds.map(
    ({ tokens, firstByteMs, policy, ms, boundMs, neededBytes, bytes, requests, fidelity }) => [
      String(tokens),
      `${firstByteMs} ms`,
      policy,
      ms.toFixed(0),
      boundMs.toFixed(0),
      (neededBytes / 1e6).toFixed(1),
      (bytes / 1e6).toFixed(1),
      String(requests),
      percent(fidelity, 1),
    ],
  )
  const memoryRows = memories.map((memory) => [
    memory.model,
    String(memory.contextTokens),
    `${memory.slots} of ${memory.all}`,
    (memory.wasmBytes / MIB).toFixed(1),
    (memory.isolateBytes / MIB).toFixed(1),
    short(memory.misses),
    (memory.bytes / 1e6).toFixed(2),
    short(memory.tokensPerSecond),
  ])
  return [
    verdictSection(verdicts),
    {
      title: `Policies, all traces (tokens/s by the bound at ${TARGET_MS} ms)`,
      rows: [['arena', 'policy', 'hits', 'misses a token', 'MB a token', 'tokens/s'], ...curveRows],
    },
    {
      title: 'Hit rates, trace by trace',
      rows: [['arena', 'trace', ...NAMES, "LFU's gap closed", 'by true rates'], ...traceRows],
    },
    {
      title: 'Decoding with a part of the experts',
      rows: [
        [
          'arena',
          'first byte',
          'policy',
          'look-ahead',
          'tokens/s',
          'ms',
          'ms waited',
          'misses',
          'fetches',
          'MB',
          'fidelity',
        ],
        ...speedRows,
      ],
    },
    {
      title: `What resident_first changes (${TARGET_MS} ms to the first byte)`,
      rows: [
        ['arena', 'KL', 'same token', 'perplexity', 'exact', 'fidelity', 'MB a token', 'tokens'],
        ...fidelityRows,
      ],
    },
    {
      title: 'From nothing to the first token',
      rows: [
        ['prompt', 'first byte', 'policy', 'ms', 'bound', 'MB needed', 'MB read', 'reads', 'fidelity'],
        ...coldRows,
      ],
    },
    {
      title: 'The first token of a cold prompt in a hurry (resident_first, 64 tokens)',
      rows: [
        ['max_latency_ms', 'KL', 'fidelity'],
        ...(coldFidelity
          ? [
              [
                String(coldFidelity.maxLatencyMs),
                coldFidelity.kl.toFixed(3),
                percent(coldFidelity.fidelity, 1),
              ],
            ]
          : []),
      ],
    },
    {
      title: 'Memory of an isolate (exact, workerd, a local bucket)',
      rows: [
        ['model', 'tokens', 'held', 'WASM, MiB', 'all, MiB', 'misses a token', 'MB a token', 'tokens/s'],
        ...memoryRows,
      ],
    },
  ].filter(({ rows }) => rows.length > 1)
}

function percent(share: number, digits = 0): string {
  return Number.isNaN(share) ? '' : `${(100 * share).toFixed(digits)} %`
}
