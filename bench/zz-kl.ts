import { wasmBackend } from '@sparsedge/engine/backends/wasm/index'
import { openShipped, wasmModules } from '../test/parity/shipped.ts'
import { readFile } from 'node:fs/promises'
const pack = await openShipped()
const modules = await wasmModules()
const g = JSON.parse(await readFile(new URL('../test/goldens/texts.golden.json', import.meta.url), 'utf8'))
const perToken = Number(process.argv[3] ?? 2)
const N = 160, PREFIX = 64
const waiting: (() => void)[] = []
let open = true
const store = { ...pack.store, read: async (h: string, i: any, s?: AbortSignal) => {
  if (!open) await new Promise<void>((r) => { waiting.push(r); s?.addEventListener('abort', () => r()) })
  return pack.store.read(h, i, s)
} }
const full = await wasmBackend({ modules, memoryBytes: 128 << 20, contextTokens: 512 })({ manifest: pack.manifest, store: pack.store })
const turn = () => new Promise<void>((r) => setImmediate(r))
const logp = (l: Float32Array) => { let m = -Infinity; for (const x of l) m = Math.max(m, x); let s = 0; for (const x of l) s += Math.exp(x - m); const z = m + Math.log(s); return Float64Array.from(l, (x) => x - z) }
const truth: Float64Array[][] = []
for (const { ids } of g.texts) {
  const s = full.open(N + 1)
  await full.step(s, Int32Array.from(ids.slice(0, PREFIX)))
  const rows = []
  for (let i = PREFIX; i < Math.min(N, ids.length); i++) rows.push(logp(await full.step(s, Int32Array.of(ids[i]))))
  truth.push(rows); s.close()
}
for (const share of (process.argv[2] ?? '0.5,0.7,0.85').split(',').map(Number)) {
  // memory to give exactly share * 720 slots
  const slots = Math.round(720 * share)
  let bytes = 96 << 20
  const { planMemory } = await import('../engine/src/backends/wasm/plan.ts')
  const p = planMemory(pack.manifest, 200 << 20, 512)
  bytes = p.arena.offset + slots * p.arena.slotBytes + 100
  let kl = 0, n = 0, chosen = 0, hon = 0, agree = 0, lp = 0, lt = 0, bg = 0
  for (const [t, { ids }] of g.texts.entries()) {
    open = true
    const small = await wasmBackend({ modules, memoryBytes: bytes, contextTokens: 512 })({ manifest: pack.manifest, store })
    const s = small.open(N + 1, { policy: 'resident_first', lookahead: true })
    await small.step(s, Int32Array.from(ids.slice(0, PREFIX)))
    open = false
    const c0 = s.usage.chosen, h0 = s.usage.honoured, r0 = s.usage.requests
    for (let i = PREFIX; i < Math.min(N, ids.length); i++) {
      const q = logp(await small.step(s, Int32Array.of(ids[i])))
      const pr = truth[t][i - PREFIX]
      let k = 0; for (let v = 0; v < q.length; v++) k += Math.exp(pr[v]) * (pr[v] - q[v])
      kl += k; n++
      if (i + 1 < ids.length) { lp += q[ids[i + 1]]; lt += pr[ids[i + 1]] }
      await turn()
      for (let j = 0; j < perToken; j++) waiting.shift()?.()
      await turn(); await turn()
    }
    chosen += s.usage.chosen - c0; hon += s.usage.honoured - h0; bg += s.usage.requests - r0
    for (const w of waiting.splice(0)) w()
    await turn()
  }
  console.log(`share ${share} slots ${slots} KL ${(kl / n).toFixed(4)} fidelity ${(hon / chosen).toFixed(4)} ppl x${Math.exp((lt - lp) / n).toFixed(4)} fetches/token ${(bg / n).toFixed(2)} n ${n}`)
}
