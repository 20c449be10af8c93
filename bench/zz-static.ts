// Which static set, and which compensation: uses restrict with a fixed mask by a fake residency.
import { wasmBackend } from '@sparsedge/engine/backends/wasm/index'
import { referenceBackend } from '@sparsedge/engine/reference'
import { openShipped } from '../test/parity/shipped.ts'
import { readFile, writeFile } from 'node:fs/promises'
// gates of reference on the texts: z for each layer & token
const pack = await openShipped()
const g = JSON.parse(await readFile(new URL('../test/goldens/texts.golden.json', import.meta.url), 'utf8'))
const ref: any = await referenceBackend()(pack)
const out: number[][][] = []
for (const { ids } of g.texts) {
  const s = ref.open(200)
  const t = ref.trace(s, Int32Array.from(ids.slice(0, 160)))
  out.push(t.gates.map((x: any) => Array.from(x.weights as Float32Array, (v) => Math.round(v * 1e4) / 1e4)))
  s.close()
  console.log('done', ids.length)
}
await writeFile('/tmp/resid/gates.json', JSON.stringify(out))
