/**
 * @module
 * `npm run bench:gpu`: WebGPU in Deno on this machine's card, beside onnxruntime-web as others run it.
 * `npm run bench:gpu -- --help`.
 */
import { execFileSync } from 'node:child_process'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { CACHE, DOCS, ROOT } from '../paths.ts'
import { prepareTools } from '../prepare.ts'
import { bundleGpuBench } from './bundle.ts'
import type { GpuReport } from './main.ts'

const HELP = `npm run bench:gpu [-- options]

Measures WebGPU in Deno on this machine's card, beside onnxruntime-web as others run it. Prints tables, writes
docs/gpu-bench.json, docs/gpu-bench.svg and docs/gpu-bench.md.

  --smallest         next to nothing, on a software adapter; writes nothing
  --folder FOLDER    only makes a folder for a machine that has nothing but Deno: \`deno run -A main.mjs\` there
  --report FILE      tables, picture and page of what that printed
  --help             this text

The first run installs bench/node_modules.
`

const { values } = parseArgs({
  options: {
    smallest: { type: 'boolean', default: false },
    folder: { type: 'string' },
    report: { type: 'string' },
    help: { type: 'boolean', default: false },
  },
})

if (values.help) console.log(HELP)
else if (values.folder !== undefined) {
  console.log(await bundleGpuBench(values.folder))
} else {
  prepareTools()
  const json = values.report === undefined ? await measure() : await readFile(values.report, 'utf8')
  const report: GpuReport = JSON.parse(json)

  const { gpuMarkdown, gpuPlot, gpuTable } = await import('./report.ts')
  console.log(gpuTable(report))
  for (const error of report.errors) console.error(error)
  if (!values.smallest) {
    await writeFile(join(DOCS, 'gpu-bench.json'), json)
    await writeFile(join(DOCS, 'gpu-bench.svg'), gpuPlot(report))
    await writeFile(join(DOCS, 'gpu-bench.md'), gpuMarkdown(report))
  }
}

async function measure(): Promise<string> {
  const program = await bundleGpuBench(join(CACHE, 'gpu'))
  const args = ['run', '-A', program, ...(values.smallest ? ['--smallest'] : [])]
  const deno = join(ROOT, 'node_modules', '.bin', 'deno')
  return execFileSync(deno, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] })
}
