/**
 * @module
 * Compiles the AssemblyScript sources beside this file. Run it to write dist/plain.wasm and dist/relaxed.wasm.
 */
import { mkdir, writeFile } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import asc from 'assemblyscript/asc'

/**
 * -O1 and no more: V8 keeps the order of a module's instructions, and from -O2 on Binaryen moves all loads of a loop
 * body before its arithmetic, which costs a quarter to a half of the speed in spilled registers.
 */
const FLAGS = ['-O1', '--runtime', 'stub', '--importMemory', '--noAssert', '--enable', 'simd']

/** Static data must end here, or nothing is built: the host lays everything else out from here on (`planMemory`). */
const STATIC_BYTES = 2048

const FEATURES = { plain: [], relaxed: ['--enable', 'relaxed-simd'] } as const
export type Variant = keyof typeof FEATURES

/**
 * @param entry file name of the entry point, in this folder
 * @throws Error with the compiler's messages
 */
export async function compile(variant: Variant, entry = 'index.ts'): Promise<Uint8Array<ArrayBuffer>> {
  let binary: Uint8Array<ArrayBuffer> | undefined
  const here = ['--baseDir', fileURLToPath(new URL('.', import.meta.url)), '--outFile', 'out.wasm']
  const { error, stderr } = await asc.main(
    [entry, ...here, ...FLAGS, '--lowMemoryLimit', String(STATIC_BYTES), ...FEATURES[variant]],
    {
      writeFile(name, contents) {
        if (name === 'out.wasm' && typeof contents !== 'string') binary = new Uint8Array(contents)
      },
    },
  )
  if (error || !binary) throw new Error(`cannot compile the ${variant} kernels\n${stderr}`, { cause: error })
  return binary
}

if (import.meta.main) {
  const dist = new URL('../dist/', import.meta.url)
  await mkdir(dist, { recursive: true })
  for (const variant of ['plain', 'relaxed'] as const) {
    const binary = await compile(variant)
    await writeFile(new URL(`${variant}.wasm`, dist), binary)
    console.log(`dist/${variant}.wasm: ${binary.length} bytes`)
  }
}
