/**
 * @module
 * Ours in Node: a child process, `node node.ts <pack directory>`, that answers messages.
 */
import { readFile } from 'node:fs/promises'
import { fsStore } from '@sparsedge/engine/store/fs'
import { KERNELS, READER } from '../paths.ts'
import { answer } from './child.ts'
import { createMeter } from './ours.ts'

const compile = async (path: string) => WebAssembly.compile(new Uint8Array(await readFile(path)))
const [plain, relaxed, reader] = await Promise.all([KERNELS.plain, KERNELS.relaxed, READER].map(compile))
answer(createMeter({ store: fsStore(process.argv[2]), modules: { plain, relaxed }, reader }))
