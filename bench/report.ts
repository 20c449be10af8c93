/**
 * @module
 * From speeds to ratios, and from ratios to verdicts. A ratio is taken within each round, and the median of those is what
 * counts.
 */
import type { Speed } from './hosts/task.ts'
import { type Inspection, type Look, PHASES } from './inspect.ts'
import { CONTEXTS, type Measurement, PROMPT } from './measure.ts'
import { GGUF, SHIPPED, TEACHER } from './paths.ts'
import { asMarkdown, asText, median, type Section, short, type Verdict, verdictSection } from './tables.ts'

export interface Report {
  readonly date: string
  readonly machine: {
    readonly cpu: string
    readonly cores: number
    readonly pinned: boolean
    readonly loadBefore: number
    readonly loadAfter: number
    readonly node: string
  }
  readonly rounds: number
  /** Decoded tokens of the main rows. */
  readonly tokens: number
  readonly measurements: readonly Measurement[]
  readonly inspection?: Inspection
  readonly verdicts: Verdict[]
}

const RUNTIMES = ['workerd', 'Node', 'Chromium'] as const

export function judge(report: Report): Verdict[] {
  const verdicts: Verdict[] = []
  const add = (
    what: string,
    value: number | undefined,
    target: number,
    better: Verdict['better'] = 'higher',
  ) => {
    if (value === undefined || Number.isNaN(target)) return
    verdicts.push({
      what,
      value,
      target,
      better,
      pass: better === 'higher' ? value >= target : value <= target,
    })
  }
  const { inspection } = report
  const native = peer(report, 'llama.cpp', GGUF.Q4_0)
  for (const host of RUNTIMES) {
    const dense = ours(report, host, TEACHER)
    add(`decode, all experts, ${host} : llama.cpp Q4_0`, ratio(dense, native, 'decode'), 2)
  }
  for (const file of Object.values(GGUF)) {
    const wllama = peer(report, 'wllama', file)
    add(
      `decode, all experts, workerd : wllama ${typeName(file)}`,
      ratio(ours(report, 'workerd', TEACHER), wllama, 'decode'),
      8,
    )
  }
  const saved = savedBytes(inspection)
  for (const host of RUNTIMES) {
    const [sparse, dense] = [ours(report, host, SHIPPED), ours(report, host, TEACHER)]
    add(`decode, shipped : all experts, ${host}`, ratio(sparse, dense, 'decode'), 0.9 * saved)
  }
  add(
    'decode, shipped, workerd : llama.cpp Q4_0',
    ratio(ours(report, 'workerd', SHIPPED), native, 'decode'),
    2 * saved,
  )
  for (const [i, context] of CONTEXTS.entries()) {
    for (const host of RUNTIMES) {
      add(
        `bandwidth after ${context} tokens : read limit, ${host}`,
        bandwidth(report, host, context),
        i === 0 ? 0.7 : 0.65,
      )
    }
  }
  for (const host of RUNTIMES) {
    add(
      `prefill, all experts, ${host} : llama.cpp Q4_0`,
      ratio(ours(report, host, TEACHER), native, 'prefill'),
      0.75,
    )
    add(
      `prefill, shipped, ${host} : llama.cpp Q4_0`,
      ratio(ours(report, host, SHIPPED), native, 'prefill'),
      1.1,
    )
  }
  for (const host of RUNTIMES) {
    for (const speed of ['decode', 'prefill'] as const) {
      const [plain, relaxed] = [ours(report, host, TEACHER, 'plain'), ours(report, host, TEACHER)]
      add(`${speed}, plain : relaxed, ${host}`, ratio(plain, relaxed, speed), 0.6)
    }
  }
  for (const { model, step, engine } of inspection?.allocations ?? []) {
    add(`bytes allocated a token, step, ${shortName(model)}`, step, 2048, 'lower')
    add(`bytes allocated a token, engine, ${shortName(model)}`, engine, 2048, 'lower')
  }
  return verdicts
}

// ---- Ratios -----------------------------------------------------------------------------------------------------------

type Kernels = Measurement['kernels']

function ours(report: Report, host: string, model: string, kernels: Kernels = 'relaxed', context = PROMPT) {
  return report.measurements.find(
    (m) => m.host === host && m.model === model && m.kernels === kernels && m.context === context,
  )
}

function peer(report: Report, host: string, file: string) {
  return report.measurements.find((m) => m.host === host && m.model === file)
}

function ratio(
  a: Measurement | undefined,
  b: Measurement | undefined,
  speed: keyof Speed,
): number | undefined {
  return a && b && median(a.speeds.map((s, round) => s[speed] / b.speeds[round][speed]))
}

/** Bytes of a token with all experts on, per byte of one of the shipped model's. */
function savedBytes(inspection: Inspection | undefined): number {
  const bytes = (model: string) => lookAt(inspection, model, PROMPT)?.bytes ?? Number.NaN
  return bytes(TEACHER) / bytes(SHIPPED)
}

/** Bytes read a second, by all experts of the teacher, of what memory gives. */
function bandwidth(report: Report, host: string, context: number): number | undefined {
  const look = lookAt(report.inspection, TEACHER, context)
  const decoded = ours(report, host, TEACHER, 'relaxed', context)
  const limit = report.measurements.find((m) => m.host === host && m.model === 'read')
  if (!look || !decoded || !limit) return undefined
  return median(decoded.speeds.map(({ decode }, round) => (decode * look.bytes) / 1e9 / limit.reads[round]))
}

function lookAt(inspection: Inspection | undefined, model: string, context: number): Look | undefined {
  return inspection?.looks.find((look) => look.model === model && look.context === context)
}

// ---- Words ------------------------------------------------------------------------------------------------------------

const typeName = (file: string) => Object.entries(GGUF).find(([, name]) => name === file)?.[0] ?? file

export function shortName(model: string): string {
  if (model === TEACHER) return 'all experts'
  return model === SHIPPED ? 'shipped' : typeName(model)
}

/** The verdicts, the speeds and where a token's time goes, as text. */
export function table(report: Report): string {
  return asText(sections(report))
}

export function markdown(report: Report): string {
  const { date, machine, rounds, tokens } = report
  return `# Benchmark

Written by \`npm run bench\` on ${date}; \`npm run bench -- --help\` says what it does. [bench.json](bench.json) has every round.

${machine.cpu}, ${machine.cores} cores, ${machine.pinned ? 'everything pinned to one of them' : 'nothing pinned to a core'}; load ${machine.loadBefore.toFixed(2)} before and ${machine.loadAfter.toFixed(2)} after; ${machine.node}. Prompt of ${PROMPT} tokens, then ${tokens}, greedy; medians of ${rounds} rounds, ratios taken within rounds. "All experts" is the teacher, SmolLM2-135M-Instruct, split into 24 experts a layer that are always on: the same work as the peers'. "Shipped" is the model of this repository with its own gates. Both have all experts in memory (128 MiB allowed instead of an isolate's 96). The peers' files hold the same weights in Q4_0 and Q8_0, the embedding too.

![Speeds beside llama.cpp's](bench.svg)

${asMarkdown(sections(report))}`
}

function sections(report: Report): Section[] {
  const { measurements, inspection, verdicts } = report
  const speedRows = measurements.map(({ host, model, kernels = '', context, speeds, reads }) => [
    host,
    model === 'read' ? 'reading memory' : shortName(model),
    kernels,
    context === 0 ? '' : String(context),
    speeds.length > 0 ? short(median(speeds.map(({ prefill }) => prefill))) : '',
    speeds.length > 0 ? short(median(speeds.map(({ decode }) => decode))) : `${short(median(reads))} GB/s`,
  ])
  const looks = inspection?.looks ?? []
  const lookRows = looks.map(({ model, context, phases, activeShare, bytes }) => [
    shortName(model),
    String(context),
    ...PHASES.map((phase) => phases[phase].toFixed(0)),
    PHASES.reduce((sum, phase) => sum + phases[phase], 0).toFixed(0),
    `${(100 * activeShare).toFixed(0)} %`,
    (bytes / 1e6).toFixed(1),
  ])
  const prefillRows = looks.map(({ model, context, prefillPhases }) => [
    shortName(model),
    String(context),
    ...PHASES.map((phase) => prefillPhases[phase].toFixed(1)),
  ])
  const together = inspection?.together ?? []
  const togetherRows = together.map(({ model, tokens, ms }) => {
    const alone = together.find((row) => row.model === model && row.tokens === 1)?.ms ?? Number.NaN
    return [shortName(model), String(tokens), ms.toFixed(1), short((tokens * alone) / ms)]
  })
  return [
    verdictSection(verdicts),
    {
      title: 'Speeds (tokens a second)',
      rows: [['where', 'what', 'kernels', 'prompt', 'prefill', 'decode'], ...speedRows],
    },
    {
      title: 'Where a decoded token goes (µs, Node, relaxed)',
      rows: [['what', 'prompt', ...PHASES, 'sum', 'active', 'MB read'], ...lookRows],
    },
    {
      title: 'Where a prompt goes (ms, Node, relaxed)',
      rows: [['what', 'prompt', ...PHASES], ...prefillRows],
    },
    {
      title: 'Steps of several tokens after a prompt of 512 (Node, relaxed)',
      rows: [['what', 'tokens', 'ms', 'times as fast as one by one'], ...togetherRows],
    },
  ].filter(({ rows }) => rows.length > 1)
}
