/**
 * @module
 * `npm run bench:gpu`: WebGPU in Deno on this machine's card, beside onnxruntime-web as others run it.
 *
 *     npm run bench:gpu                        measures, prints tables, writes docs/gpu-bench.{json,md,svg}
 *     npm run bench:gpu -- --smallest          next to nothing, on a software adapter; writes nothing
 *     npm run bench:gpu -- --folder FOLDER     makes a folder for a machine that has only Deno: `deno run -A main.mjs`
 *     npm run bench:gpu -- --report FILE       tables and picture of what that printed
 */
import { execFileSync } from 'node:child_process'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { CACHE, DOCS, ROOT } from '../paths.ts'
import { prepareTools } from '../prepare.ts'
import { bundleGpuBench } from './bundle.ts'
import type { GpuReport } from './main.ts'

const { values } = parseArgs({
  options: {
    smallest: { type: 'boolean', default: false },
    folder: { type: 'string' },
    report: { type: 'string' },
  },
})

if (values.folder !== undefined) {
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
