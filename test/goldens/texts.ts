/**
 * Writes texts.golden.json and texts.golden.bin: what the reference backend expects after every token of texts.json, the
 * golden of the WASM backend. Run it when the shipped pack changes:
 *
 *     node test/goldens/texts.ts
 *
 * The JSON holds each text's token ids; the binary holds, position after position, the 48 likeliest next tokens: their ids
 * as little-endian u16, then their log-probabilities as float32.
 */
import { writeFile } from 'node:fs/promises'
import { referenceOf } from '@sparsedge/engine/backends/reference/index'
import { packWeights } from '@sparsedge/engine/pack/weights'
import { logProbabilities } from '../parity/divergence.ts'
import { golden, NamedTexts, openShipped, packTokenizer } from '../parity/shipped.ts'

const TOP = 48

const shipped = await openShipped()
const tokenizer = await packTokenizer(shipped)
const backend = await referenceOf(packWeights(shipped.manifest, shipped.store))
const { vocab } = backend.config
if (vocab > 65536) throw new RangeError('token ids do not fit 16 bits')

const texts: { name: string; ids: number[] }[] = []
const positions: Buffer[] = []
for (const { name, text } of await golden('texts.json', NamedTexts)) {
  const ids = tokenizer.encode(text)
  const { logits } = backend.trace(backend.open(ids.length), Int32Array.from(ids))
  for (let at = 0; at < ids.length * vocab; at += vocab) {
    const p = logProbabilities(logits.subarray(at, at + vocab))
    const top = [...p.keys()].sort((a, b) => p[b] - p[a] || a - b).slice(0, TOP)
    const bytes = Buffer.alloc(6 * TOP)
    for (const [i, token] of top.entries()) {
      bytes.writeUInt16LE(token, 2 * i)
      bytes.writeFloatLE(p[token], 2 * TOP + 4 * i)
    }
    positions.push(bytes)
  }
  texts.push({ name, ids })
  console.log(`${name}: ${ids.length} tokens`)
}
const lines = texts.map((text) => JSON.stringify(text)).join(',\n')
await writeFile(new URL('texts.golden.json', import.meta.url), `{"top":${TOP},"texts":[\n${lines}\n]}\n`)
await writeFile(new URL('texts.golden.bin', import.meta.url), Buffer.concat(positions))
