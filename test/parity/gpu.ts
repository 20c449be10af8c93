/**
 * @module
 * Prints how the WebGPU backend compares with the reference's expectations and with the WASM backend on the model that
 * ships, by forced decoding of test/goldens/texts.json, and how fast it is. For a machine with a real GPU: a software
 * adapter takes seconds a token.
 *
 *     deno run -A test/parity/gpu.ts [where onnxruntime's files are, as a URL]
 */
import type { Backend } from '@sparsedge/engine/backends/backend'
import { wasmBackend } from '@sparsedge/engine/backends/wasm/index'
import { webgpuBackend } from '@sparsedge/engine/backends/webgpu'
import { argmax, divergence, logProbabilities, partialDivergence } from './divergence.ts'
import { openShipped, packTokenizer, wasmModules } from './shipped.ts'
import { mean, textGoldens } from './texts.ts'

const GENERATED = 256

const [onnxruntimePath] = process.argv.slice(2)
const shipped = await openShipped()
const wasm = await wasmBackend({ modules: await wasmModules() })(shipped)
const gpu = await webgpuBackend(onnxruntimePath === undefined ? {} : { onnxruntimePath })(shipped)

const rows: Record<string, unknown>[] = []
for (const { name, ids, expected } of await textGoldens()) {
  const [a, b] = [wasm.open(ids.length), gpu.open(ids.length)]
  const [fromReference, fromWasm]: number[][] = [[], []]
  const same = { reference: 0, wasm: 0 }
  for (const [i, { tokens, p }] of expected.entries()) {
    const token = Int32Array.of(ids[i])
    const logits = { wasm: await wasm.step(a, token), gpu: await gpu.step(b, token) }
    const q = logProbabilities(logits.gpu)
    fromReference.push(partialDivergence(tokens, p, q))
    fromWasm.push(divergence(logProbabilities(logits.wasm), q))
    if (argmax(logits.gpu) === tokens[0]) same.reference += 1
    if (argmax(logits.gpu) === argmax(logits.wasm)) same.wasm += 1
  }
  rows.push({
    text: name,
    tokens: ids.length,
    'KL, reference': mean(fromReference).toExponential(1),
    'top-1, reference': (same.reference / ids.length).toFixed(3),
    'KL, WASM': mean(fromWasm).toExponential(1),
    'top-1, WASM': (same.wasm / ids.length).toFixed(3),
    'share, WASM': a.usage.activeShare.toFixed(3),
    'share, WebGPU': b.usage.activeShare.toFixed(3),
  })
  a.close()
  b.close()
}
console.table(rows)

const tokenizer = await packTokenizer(shipped)
const prompt = Int32Array.from(tokenizer.encode('The history of the telescope begins'))
for (const backend of [wasm, gpu]) {
  await generate(backend, 32)
  const start = performance.now()
  const text = await generate(backend, GENERATED)
  const rate = (1000 * GENERATED) / (performance.now() - start)
  console.log(`${backend.name}: ${rate.toFixed(1)} tokens/s: ${JSON.stringify(text.slice(0, 200))}`)
}
process.exit(0)

async function generate(backend: Backend, count: number): Promise<string> {
  const sequence = backend.open(prompt.length + count)
  const tokens: number[] = []
  let logits = await backend.step(sequence, prompt)
  while (tokens.length < count) {
    tokens.push(argmax(logits))
    logits = await backend.step(sequence, Int32Array.of(tokens[tokens.length - 1]))
  }
  sequence.close()
  return tokenizer.decode(tokens)
}
