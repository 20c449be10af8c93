/**
 * @module
 * One runner per runtime: each starts the real thing, has it run probe.ts and returns what it printed.
 */
import { execFile } from 'node:child_process'
import { existsSync } from 'node:fs'
import { delimiter, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { build } from 'esbuild'
import { launchChromium } from '../chromium.ts'
import { BIN, ROOT } from '../processes.ts'
import { startWorker } from '../servers.ts'
import type { ProbeResult, ProbeTask } from './probe.ts'
import { serveFolders } from './server.ts'
import type { runProbe } from './web.ts'

const exec = promisify(execFile)
export const HERE = fileURLToPath(new URL('.', import.meta.url))
export const DIST = join(ROOT, 'engine', 'dist')

/** Where the packs are. */
export interface Packs {
  /** As files: `shards/…`, `models/…`. */
  readonly directory: string
  /** wrangler's state, with the same objects in the bucket. */
  readonly state: string
  /** A folder for what a runner builds. */
  readonly scratch: string
}

export type Runner = (packs: Packs, tasks: readonly ProbeTask[]) => Promise<ProbeResult[]>

/** Node, from the program at a path, with flags of its own or of V8's. */
export function node(program: string, ...flags: string[]): Runner {
  return async ({ directory, scratch }, tasks) => {
    const outfile = join(scratch, 'node.mjs')
    await bundle('node.ts', { platform: 'node', outfile })
    return print(program, [...flags, outfile, directory, DIST, JSON.stringify(tasks)])
  }
}

/** Deno reads the TypeScript as it is, like its entry does, and the packs over HTTP. */
export const deno: Runner = async ({ directory }, tasks) => {
  const server = await serveFolders([directory, DIST], '')
  try {
    const { host } = new URL(server.address)
    const args = ['run', '--no-prompt', `--allow-net=${host}`, join(HERE, 'deno.ts')]
    return await print(join(BIN, 'deno'), [...args, server.address, JSON.stringify(tasks)])
  } finally {
    await server.close()
  }
}

/** The system's Chromium; packs over HTTP. */
export const chromium: Runner = async ({ directory }, tasks) => {
  const script = await bundle('web.ts', { platform: 'browser', globalName: 'probe' })
  const server = await serveFolders([directory, DIST], `${script};globalThis.runProbe = probe.runProbe`)
  const browser = await launchChromium()
  try {
    const page = await browser.newPage()
    await page.goto(server.address)
    return await page.evaluate(
      ({ address, tasks }) =>
        (globalThis as unknown as { runProbe: typeof runProbe }).runProbe(address, tasks),
      { address: server.address, tasks },
    )
  } finally {
    await browser.close()
    await server.close()
  }
}

/** workerd, with the packs in a (local) R2 bucket. */
export const workerd: Runner = async ({ state }, tasks) => {
  const server = await startWorker({ state, config: join(HERE, 'wrangler.toml') })
  try {
    const response = await fetch(server.url, { method: 'POST', body: JSON.stringify(tasks) })
    if (!response.ok) throw new Error(`the Worker answered ${response.status}: ${await response.text()}`)
    return (await response.json()) as ProbeResult[]
  } finally {
    await server.stop()
  }
}

/** The machine's own Node, where it is another one than the lockfile's and at least 20. */
export async function systemNode(): Promise<{ program: string; version: string } | undefined> {
  const folders = (process.env.PATH ?? '')
    .split(delimiter)
    .filter((folder) => !folder.includes('node_modules'))
  const program = folders.map((folder) => join(folder, 'node')).find((path) => existsSync(path))
  if (program === undefined) return undefined
  const version = (await exec(program, ['--version'])).stdout.trim()
  return version !== process.version && Number.parseInt(version.slice(1), 10) >= 20
    ? { program, version }
    : undefined
}

export async function bundle(
  entry: string,
  options: { platform: 'node' | 'browser'; outfile?: string; globalName?: string },
): Promise<string> {
  const { outputFiles } = await build({
    entryPoints: [join(HERE, entry)],
    bundle: true,
    format: options.globalName === undefined ? 'esm' : 'iife',
    target: 'es2023',
    logLevel: 'error',
    ...options,
    write: options.outfile !== undefined,
  })
  return outputFiles?.[0].text ?? ''
}

/** Runs a program and parses the JSON that it prints. */
export async function print<T = ProbeResult[]>(program: string, args: readonly string[]): Promise<T> {
  const { stdout } = await exec(program, args, { maxBuffer: 16 * 1024 * 1024 })
  return JSON.parse(stdout)
}
