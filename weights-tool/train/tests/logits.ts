/**
 * @module
 * What the engine makes of a pack: for every share that it serves, the reference backend's logits after each of some tokens.
 *
 *     node logits.ts PACK '[1, 2, 3]'     prints { share: [tokens · vocab] }
 */
import { referenceOf } from '@sparsedge/engine/backends/reference/index'
import { packWeights } from '@sparsedge/engine/pack/weights'
import { DEFAULT_EXPERTS } from '@sparsedge/engine/request'
import { openPack } from '../../../test/parity/shipped.ts'

const [path, tokens] = process.argv.slice(2)
const { manifest, store } = await openPack(path)
const backend = await referenceOf(packWeights(manifest, store))
const ids = Int32Array.from(JSON.parse(tokens))
const logits = Object.keys(manifest.config.gate.offsets ?? {}).map((share) => {
  const sequence = backend.open(ids.length, { ...DEFAULT_EXPERTS, selection: { share: Number(share) } })
  return [share, Array.from(backend.trace(sequence, ids).logits)]
})
process.stdout.write(JSON.stringify(Object.fromEntries(logits)))
