/**
 * @module
 * The system's own Chromium: nothing is downloaded. Run as a program, it says where it is or how to get it.
 */
import { existsSync } from 'node:fs'
import { delimiter, join } from 'node:path'
import { type Browser, chromium } from 'playwright-core'

const NAMES = ['chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable']
const ELSEWHERE = ['/Applications/Google Chrome.app/Contents/MacOS/Google Chrome']

const SOFTWARE_GPU = ['--enable-unsafe-webgpu', '--use-webgpu-adapter=swiftshader']

/** @throws Error that says how to get it */
export function chromiumPath(): string {
  const folders = (process.env.PATH ?? '').split(delimiter)
  const candidates = [...NAMES.flatMap((name) => folders.map((folder) => join(folder, name))), ...ELSEWHERE]
  const found = candidates.find((path) => existsSync(path))
  if (found === undefined) {
    throw new Error('There is no Chromium on this machine: `apt-get install chromium` (.ci/run does it).')
  }
  return found
}

/**
 * Starts it without a window. The caller closes it.
 *
 * @param gpu with WebGPU on Chromium's own software adapter, the same on every machine
 */
export function launchChromium({ gpu = false } = {}): Promise<Browser> {
  return chromium.launch({
    executablePath: chromiumPath(),
    // Containers have no sandbox of their own to offer.
    args: ['--no-sandbox', '--disable-dev-shm-usage', ...(gpu ? SOFTWARE_GPU : ['--disable-gpu'])],
  })
}

if (import.meta.main) {
  try {
    console.log(`Chromium: ${chromiumPath()}`)
  } catch (error) {
    console.error(error instanceof Error ? error.message : error)
    process.exitCode = 1
  }
}
