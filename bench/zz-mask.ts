import { wasmBackend } from '@sparsedge/engine/backends/wasm/index'
import { openShipped, wasmModules } from '../test/parity/shipped.ts'
import { readFile } from 'node:fs/promises'
const pack = await openShipped()
const modules = await wasmModules()
const g = JSON.parse(await readFile(new URL('../test/goldens/texts.golden.json', import.meta.url), 'utf8'))
const gates: number[][][] = JSON.parse(await readFile('/tmp/resid/gates.json', 'utf8'))
const N = 130, PREFIX = 64, L = 30, E = 24
let open = true
const store = { ...pack.store, read: async (h: string, i: any, s?: AbortSignal) => { if (!open) await new Promise(() => {}); return pack.store.read(h, i, s) } }
const full: any = await wasmBackend({ modules, memoryBytes: 128 << 20, contextTokens: 512 })({ manifest: pack.manifest, store })
await full.residency.prewarm()
open = false
const slots: Int32Array = full.residency.slots
const saved = slots.slice()
const logp = (l: Float32Array) => { let m = -Infinity; for (const x of l) m = Math.max(m, x); let s = 0; for (const x of l) s += Math.exp(x - m); const z = m + Math.log(s); return Float64Array.from(l, (x) => x - z) }
const texts = g.texts.slice(0, 4)
async function score(mask: (t: number) => Uint8Array | undefined) {
  const rows: Float64Array[][] = []; let chosen = 0, hon = 0
  for (const [t, { ids }] of texts.entries()) {
    slots.set(saved)
    const s = full.open(N + 1, { policy: 'resident_first', lookahead: false })
    await full.step(s, Int32Array.from(ids.slice(0, PREFIX)))
    const m = mask(t)
    if (m) for (let k = 0; k < 720; k++) slots[k] = m[k] ? saved[k] : -1
    const c0 = s.usage.chosen, h0 = s.usage.honoured
    const r = []
    for (let i = PREFIX; i < N; i++) r.push(logp(await full.step(s, Int32Array.of(ids[i]))))
    chosen += s.usage.chosen - c0; hon += s.usage.honoured - h0
    rows.push(r); s.close()
  }
  return { rows, fid: hon / chosen }
}
const truth = (await score(() => undefined)).rows
const kl = (rows: Float64Array[][]) => { let sum = 0, n = 0; rows.forEach((r, t) => r.forEach((q, i) => { const p = truth[t][i]; for (let v = 0; v < q.length; v++) sum += Math.exp(p[v]) * (p[v] - q[v]); n++ })); return sum / n }
const stat = (from: number, to: number, f: (w: number) => number, perLayer: boolean) => (share: number) => (t: number) => {
  const a = new Float64Array(720)
  for (let l = 0; l < L; l++) for (let i = from; i < to; i++) for (let e = 0; e < E; e++) a[l * E + e] += f(gates[t][l][i * E + e])
  const m = new Uint8Array(720)
  if (perLayer) for (let l = 0; l < L; l++) { const o = [...Array(E).keys()].sort((x, y) => a[l * E + y] - a[l * E + x]); for (const e of o.slice(0, Math.round(E * share))) m[l * E + e] = 1 }
  else for (const k of [...a.keys()].sort((x, y) => a[y] - a[x]).slice(0, Math.round(720 * share))) m[k] = 1
  return m
}
const cases: Record<string, (s: number) => (t: number) => Uint8Array> = {
  'prefix freq global': stat(0, 64, (w) => (w > 0 ? 1 : 0), false),
  'prefix freq layer': stat(0, 64, (w) => (w > 0 ? 1 : 0), true),
  'prefix sum g global': stat(0, 64, (w) => w, false),
  'prefix sum g layer': stat(0, 64, (w) => w, true),
  'prefix sum g2 global': stat(0, 64, (w) => w * w, false),
  'future sum g global': stat(64, 130, (w) => w, false),
}
for (const share of (process.argv[2] ?? '0.5,0.7,0.85').split(',').map(Number)) for (const [n, f] of Object.entries(cases)) {
  const { rows, fid } = await score(f(share))
  console.log(share, n, 'KL', kl(rows).toFixed(3), 'fid', fid.toFixed(3))
}
process.exit()
