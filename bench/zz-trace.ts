import { openShipped, wasmModules } from '../test/parity/shipped.ts'
import { writeFile } from 'node:fs/promises'
const Mem = WebAssembly.Memory, Inst = WebAssembly.Instance
let memory: any
;(WebAssembly as any).Memory = function (o: any) { memory = new Mem(o); return memory }
let onGate = (_l: number, _c: number) => {}
;(WebAssembly as any).Instance = function (m: any, i: any) {
  const inst = new Inst(m, i)
  const e: any = { ...inst.exports }
  e.gate = (l: number, c: number) => { const r = (inst.exports as any).gate(l, c); onGate(l, c); return r }
  return { exports: e }
}
const { wasmBackend } = await import('@sparsedge/engine/backends/wasm/index')
const { planMemory } = await import('../engine/src/backends/wasm/plan.ts')
const { createEngine } = await import('@sparsedge/engine')
const pack = await openShipped()
const plan = planMemory(pack.manifest, 120 << 20, 1024)
const engine = await createEngine({ store: pack.store, model: pack.manifest.name, backend: wasmBackend({ modules: await wasmModules(), memoryBytes: 120 << 20, contextTokens: 1024 }) })
const L = 30, N = 24
const prompts = ['What is gravity?', 'Write a short story about a fox and a river.', 'Give me five tips for learning to cook.', 'Explain how a TCP handshake works.', 'What is the capital of France, and what can I see there?', 'Write a Python function that reverses a list.', 'Why is the sky blue?', 'Plan a week of training for a 5 km run.']
const greedy = { temperature: 0.7, topK: 0, topP: 0.95, minP: 0, repetitionPenalty: 1.1, presencePenalty: 0, frequencyPenalty: 0, logitBias: new Map([[0, -100], [2, -100]]), seed: 1 }
const meta = []
const chunks: Float32Array[] = []
for (const [p, content] of prompts.entries()) {
  let steps: number[] = []
  let cur: Float32Array[] = []
  onGate = (l, c) => {
    const at = plan.scratch.gateScores + (l & 1) * 128 * N * 4
    cur.push(new Float32Array(memory.buffer, at, c * N).slice())
    if (l === 0) steps.push(c)
  }
  let text = ''
  for await (const e of engine.generate({ prompt: { messages: [{ role: 'user', content }] }, maxTokens: 300, sampling: { ...greedy, seed: p }, stop: [] })) if (e.type === 'text') text += e.text
  console.log(p, steps[0], steps.length, text.slice(0, 60).replaceAll('\n', ' '))
  meta.push({ steps })
  chunks.push(...cur)
}
const total = chunks.reduce((s, c) => s + c.length, 0)
const all = new Float32Array(total)
let at = 0
for (const c of chunks) { all.set(c, at); at += c.length }
await writeFile('/tmp/resid/z.bin', new Uint8Array(all.buffer))
await writeFile('/tmp/resid/z.json', JSON.stringify(meta))
