/**
 * @module
 * Every runtime gives the same bits: the logits of every step, on the plain and on the relaxed kernels.
 */
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, inject, test } from 'vitest'
import { addTinyPacks, TASKS } from './packs.ts'
import type { ProbeResult } from './probe.ts'
import { chromium, deno, node, type Packs, type Runner, systemNode, workerd } from './runners.ts'

const BOTH = ['wasm-plain', 'wasm-relaxed']
const runtimes: { name: string; run: Runner; kernels: string[] }[] = [
  { name: 'Node', run: node(process.execPath), kernels: BOTH },
  { name: 'workerd', run: workerd, kernels: BOTH },
  { name: 'Deno', run: deno, kernels: BOTH },
  { name: 'Chromium', run: chromium, kernels: BOTH },
]
if (process.arch === 'x64') {
  // There V8 miscompiles relaxed SIMD (engine/assembly/dot.ts), so that the plain kernels run in place of the relaxed ones.
  const run = node(process.execPath, '--no-enable-avx')
  runtimes.push({ name: 'Node without AVX', run, kernels: ['wasm-plain', 'wasm-plain'] })
}
const other = await systemNode()
if (other) {
  // Node 20 has no relaxed SIMD.
  const kernels = Number.parseInt(other.version.slice(1), 10) < 22 ? ['wasm-plain'] : BOTH
  runtimes.push({ name: `Node ${other.version}`, run: node(other.program), kernels })
}

let packs: Packs
let expected: Map<string, ProbeResult>
beforeAll(async () => {
  const scratch = await mkdtemp(join(tmpdir(), 'sparsedge-runtimes-'))
  packs = { scratch, directory: inject('directory'), state: inject('state') }
  await addTinyPacks(packs.directory, packs.state)
  const [reference] = runtimes
  const results = await reference.run(packs, TASKS)
  expected = new Map(results.filter(({ backend }) => backend === 'wasm-plain').map((r) => [r.model, r]))
})
afterAll(() => rm(packs.scratch, { recursive: true, force: true }))

describe.each(runtimes)('$name', ({ run, kernels }) => {
  let results: ProbeResult[]
  beforeAll(async () => {
    results = await run(packs, TASKS)
  })

  test.each(TASKS)('$model', ({ model, steps }) => {
    const here = results.filter((result) => result.model === model)
    expect(here.map(({ backend }) => backend)).toEqual(kernels)
    for (const { backend: _, ...result } of here) {
      expect(result.logits.length).toBe(steps)
      const { backend: __, ...same } = expected.get(model) ?? {}
      expect(result).toEqual(same)
    }
  })
})
