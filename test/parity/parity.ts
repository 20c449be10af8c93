/**
 * @module
 * Prints how the reference backend (or, with `--wasm`, the WASM backend) compares with PyTorch on every golden prompt.
 * The rung that must hold is the reference's: 1e-3 on logits, all 64 greedy tokens.
 *
 *     node test/parity/parity.ts [--wasm]
 */
import { parseArgs } from 'node:util'
import { referenceBackend } from '@sparsedge/engine/backends/reference/index'
import { wasmBackend } from '@sparsedge/engine/backends/wasm/index'
import { comparePrompt, promptGoldens } from './prompts.ts'
import { openShipped, wasmModules } from './shipped.ts'

const { values } = parseArgs({ options: { wasm: { type: 'boolean', default: false } } })
const shipped = await openShipped()
const factory = values.wasm ? wasmBackend({ modules: await wasmModules() }) : referenceBackend()
const backend = await factory(shipped)

const rows: Record<string, unknown>[] = []
for (const prompt of await promptGoldens(backend.config.vocab)) {
  const start = performance.now()
  const { difference, agreeing } = await comparePrompt(backend, prompt)
  rows.push({
    prompt: prompt.name,
    tokens: prompt.ids.length,
    'max |Δ logit|': difference.toExponential(1),
    'greedy tokens': `${agreeing} of ${prompt.greedy.length}`,
    seconds: ((performance.now() - start) / 1000).toFixed(1),
  })
}
console.log(`${backend.name} against PyTorch (float64), ${shipped.manifest.name}`)
console.table(rows)
