/**
 * @module
 * Ours and wllama in Chromium: a page each, in a browser each, so that neither shares a process with the other.
 */
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { build } from 'esbuild'
import { launchChromium } from '../../test/chromium.ts'
import { serveFolders } from '../../test/runtimes/server.ts'
import { BENCH, CACHE, DIST, PACKS } from '../paths.ts'
import type { Page } from './page.ts'
import type { Host, Task } from './task.ts'

export const chromiumHost = () => open('Chromium', 'openOurs', [PACKS, DIST, CACHE])

export const wllamaHost = () =>
  open('wllama', 'openWllama', [join(BENCH, 'node_modules', '@wllama', 'wllama', 'esm'), CACHE])

async function open(name: string, opener: string, folders: readonly string[]): Promise<Host> {
  const { outputFiles } = await build({
    entryPoints: [fileURLToPath(new URL('page.ts', import.meta.url))],
    bundle: true,
    format: 'iife',
    globalName: 'bench',
    target: 'es2023',
    logLevel: 'error',
    write: false,
  })
  const script = `${outputFiles[0].text};bench.${opener}(location.origin).then(
    (meter) => { globalThis.meter = meter }, (error) => { document.title = String(error) })`
  const server = await serveFolders(folders, script)
  const browser = await launchChromium()
  const page = await browser.newPage()
  page.setDefaultTimeout(0)
  await page.goto(server.address)
  await page.waitForFunction(() => document.title !== '' || (globalThis as Page).meter !== undefined)
  return {
    name,
    generate: (task) =>
      page.evaluate((task: Task) => {
        const { meter } = globalThis as Page
        if (!meter) throw new Error(document.title)
        return meter.generate(task)
      }, task),
    read: () => page.evaluate(() => (globalThis as Page).meter?.read?.() ?? Number.NaN),
    async close() {
      await browser.close()
      await server.close()
    },
  }
}
