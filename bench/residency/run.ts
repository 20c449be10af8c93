/**
 * @module
 * `npm run bench:residency`: what it costs to hold only a part of the experts. `npm run bench:residency -- --help`.
 */
import { writeFile } from 'node:fs/promises'
import { cpus, loadavg } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { pin } from '../machine.ts'
import { DOCS } from '../paths.ts'
import { prepareTools } from '../prepare.ts'
import type { Part } from './measure.ts'

const PARTS: readonly Part[] = ['policies', 'speed', 'fidelity', 'cold', 'memory']

const HELP = `npm run bench:residency [-- options]

Measures the shipped model with an arena that holds a part of its experts. Prints the targets with pass or MISS, and the
tables behind them; writes docs/residency.json, docs/residency.svg and docs/residency.md.

  policies   records which experts the model selects while it answers chats and reads texts, then replays that through the
             engine's table of slots with LRU, LFU, our policy and Belady's optimum, from the smallest arena to all experts
  speed      decodes with all experts beside no residency at all; then with 33 to 85 % of them, from memory and from a
             store 10, 30 and 100 ms away at 100 MB/s; exact and resident_first; look-ahead on and off
  fidelity   KL divergence and perplexity of resident_first at 50, 70 and 85 %
  cold       from nothing to the first token of prompts of 16, 64 and 256 tokens: time, bytes, reads
  memory     what an isolate of workerd holds at most, with V8 told to refuse more than 96 MiB of WebAssembly memory: the
             shipped model with half of its experts until its context of 2,048 tokens is full, and the same model with
             experts of 8 bits (125 MB), which cannot fit, until 1,024 tokens

  --only PARTS   some of these, separated by commas; nothing is written to docs/ then
  --quick        a few tokens of everything, to see that it runs; nothing is written to docs/
  --core N       the core that everything is pinned to; default the last one. Needs taskset (Linux)
  --help         this text

A full run takes about twenty minutes, most of it waiting for the store; \`--only memory\` takes five. Leave the machine
alone meanwhile: the load before and after is printed, and above 0.5 the times are not worth much. The first run installs
bench/node_modules.
`

const { values } = parseArgs({
  options: {
    only: { type: 'string', default: PARTS.join() },
    quick: { type: 'boolean', default: false },
    core: { type: 'string', default: String(cpus().length - 1) },
    help: { type: 'boolean', default: false },
  },
})
if (values.help) console.log(HELP)
else await main()

async function main(): Promise<void> {
  const named = values.only.split(',')
  const parts = PARTS.filter((part) => named.includes(part))
  if (parts.length < named.length) {
    throw new Error(`--only ${values.only}: the parts are ${PARTS.join(', ')}`)
  }
  prepareTools()
  const pinned = pin(Number(values.core))
  const loadBefore = loadavg()[0]
  // They open the model, which needs the kernels.
  const { FULL, measureAll, QUICK } = await import('./measure.ts')
  const { judge, markdown, table } = await import('./report.ts')
  const measured = await measureAll(parts, values.quick ? QUICK : FULL)
  const report = {
    date: new Date().toISOString().slice(0, 10),
    machine: { cpu: cpus()[0].model, pinned, loadBefore, loadAfter: loadavg()[0], node: process.version },
    ...measured,
    verdicts: judge(measured),
  }
  console.log(table(report))
  if (values.quick || parts.length < PARTS.length) return
  const { plot } = await import('./plot.ts')
  await writeFile(join(DOCS, 'residency.json'), `${JSON.stringify(report, null, 2)}\n`)
  await writeFile(join(DOCS, 'residency.svg'), plot(report))
  await writeFile(join(DOCS, 'residency.md'), markdown(report))
}
