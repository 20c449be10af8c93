/**
 * @module
 * The product on each of its platforms, on a free port: the Worker under `wrangler dev` with a local R2 bucket, and the
 * entries for Node and Deno with a pack directory.
 */
import { join } from 'node:path'
import { BIN, freePort, type Program, start } from './processes.ts'

export interface Server extends Program {
  /** `http://localhost:<port>` */
  readonly url: string
}

export interface WorkerOptions {
  /** Another Worker than the product: its wrangler.toml. */
  readonly config?: string
  /** wrangler's state: the folder that a bucket was seeded in. */
  readonly state: string
  /** Its directory of static assets, in place of that of wrangler.toml. */
  readonly assets?: string
  /** The host that the Worker believes to be called by. */
  readonly host?: string
  /** Variables of the Worker, over those of wrangler.toml. */
  readonly vars?: Readonly<Record<string, string>>
  /** Flags for V8, for limits that workerd does not enforce by itself. */
  readonly v8Flags?: string
  readonly inspectorPort?: number
}

/** The Worker as `npm start` and a deployment run it, bundled by wrangler from wrangler.toml. */
export async function startWorker({
  state,
  assets,
  host,
  config = 'wrangler.toml',
  vars = {},
  v8Flags,
  inspectorPort,
}: WorkerOptions): Promise<Server> {
  const port = await freePort()
  const args = ['dev', '--config', config, '--ip', '127.0.0.1', '--port', String(port), '--persist-to', state]
  args.push('--inspector-port', String(inspectorPort ?? (await freePort())))
  args.push('--show-interactive-dev-session', 'false')
  if (host !== undefined) args.push('--local-upstream', host)
  if (assets !== undefined) args.push('--assets', assets)
  for (const [name, value] of Object.entries(vars)) args.push('--var', `${name}:${value}`)
  const program = start('wrangler', args, {
    CI: '1',
    WRANGLER_SEND_METRICS: 'false',
    CLOUDFLARE_CF_FETCH_ENABLED: 'false',
    ...(v8Flags !== undefined && { MINIFLARE_WORKERD_V8_FLAGS: v8Flags }),
  })
  await program.until(/Ready on http/)
  return { ...program, url: `http://127.0.0.1:${port}` }
}

/** The entry for Node or Deno, started as its header says. */
export async function startEntry(
  runtime: 'node' | 'deno',
  env: Readonly<Record<string, string>>,
): Promise<Server> {
  const allow = ['--no-prompt', '--allow-env', '--allow-net', '--allow-read']
  const args = [...(runtime === 'deno' ? ['run', ...allow] : []), `functions/src/entries/${runtime}.ts`]
  const program = start(join(BIN, runtime), args, { PORT: '0', HOST: '127.0.0.1', ...env })
  const [url] = await program.until(/http:\/\/\S+:\d+/)
  return { ...program, url }
}
