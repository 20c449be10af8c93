/**
 * Writes the packs of test/parity/tiny-cases.ts as checkpoint directories, for tiny.py.
 *
 *     node test/goldens/tiny.ts <directory>
 */
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { unpack } from '@sparsedge/weights-tool/unpack'
import { tinyPack } from '../fixtures/tiny.ts'
import { TINY_CASES, TINY_TOKENS } from '../parity/tiny-cases.ts'

const directory = process.argv[2]
for (const options of TINY_CASES) {
  const { manifest, store } = await tinyPack(options)
  await unpack({ path: '', manifest, store }, join(directory, options.name), { dtype: 'F32' })
}
const names = TINY_CASES.map(({ name }) => name)
await writeFile(join(directory, 'cases.json'), JSON.stringify({ names, tokens: TINY_TOKENS }))
