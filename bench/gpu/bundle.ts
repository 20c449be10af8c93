/**
 * @module
 * Puts the measurement into a folder that needs nothing but Deno: `node bench/gpu/bundle.ts FOLDER`.
 */
import { copyFile, mkdir } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { build } from 'esbuild'
import { BENCH, DIST } from '../paths.ts'

const ORT = dirname(createRequire(import.meta.url).resolve('onnxruntime-web/webgpu'))

export async function bundleGpuBench(folder: string): Promise<string> {
  await mkdir(folder, { recursive: true })
  const outfile = join(folder, 'main.mjs')
  await build({
    entryPoints: [join(BENCH, 'gpu', 'main.ts')],
    bundle: true,
    format: 'esm',
    platform: 'node',
    target: 'es2023',
    logLevel: 'error',
    outfile,
    banner: {
      js: "import { createRequire } from 'node:module'; const require = createRequire(import.meta.url);",
    },
  })
  for (const name of ['plain.wasm', 'relaxed.wasm']) await copyFile(join(DIST, name), join(folder, name))
  for (const name of ['ort-wasm-simd-threaded.asyncify.mjs', 'ort-wasm-simd-threaded.asyncify.wasm']) {
    await copyFile(join(ORT, name), join(folder, name))
  }
  return outfile
}

if (import.meta.main) console.log(await bundleGpuBench(process.argv[2]))
