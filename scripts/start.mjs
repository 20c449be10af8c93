/**
 * @module
 * `npm start`: from a fresh clone to a model that answers. Installs what is missing, builds the kernels, puts the shipped
 * pack into the local R2 bucket (once), starts the Worker with wrangler and says where it is. Runs on any Node from 20 on;
 * everything behind it runs on the Node that the lockfile pins.
 *
 * | environment | |
 * |---|---|
 * | `PORT` | default 8787 |
 * | `API_KEY`, and any variable of wrangler.toml | passed on to the Worker |
 */
import { spawn } from 'node:child_process'
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs'
import { createServer } from 'node:net'
import { delimiter, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const ROOT = fileURLToPath(new URL('..', import.meta.url))
const BIN = join(ROOT, 'node_modules', '.bin')
// `PORT=` means that it is not set.
const port = Number(process.env.PORT || 8787)

/** Processes that were started and have not ended. */
const children = new Set()
let stopping = false

process.on('SIGINT', stop)
process.on('SIGTERM', stop)
process.on('SIGHUP', stop)
if (process.env.npm_lifecycle_event !== undefined) {
  // npm hands a SIGTERM to the shell in between, which dies of it and tells nobody.
  const shell = process.ppid
  setInterval(() => process.ppid === shell || stop('SIGTERM'), 200).unref()
}
try {
  await main()
} catch (error) {
  if (!stopping) console.error(`\n${error.message}`)
  await stop()
}

async function main() {
  if (!Number.isInteger(port) || port < 1 || port > 65_535)
    throw new Error(`PORT=${process.env.PORT} is no port: it must be a whole number from 1 to 65535`)
  await checkPortIsFree()
  if (missingPackages() > 0) {
    console.log('Installing packages (npm ci) …')
    await run(
      'npm',
      ['ci', '--no-audit', '--no-fund', '--loglevel=error'],
      'npm ci failed: is the registry reachable?',
    )
  }
  if (!existsSync(join(BIN, 'node')) && Number.parseInt(process.versions.node, 10) < 24) {
    throw new Error(
      `npm has no Node 24 for ${process.platform} ${process.arch}: install Node 24, then npm start`,
    )
  }
  if (kernelsAreStale()) {
    console.log('Building the kernels …')
    await run('npm', ['run', '--silent', 'build'], 'the kernels do not build; see above')
  }
  await run('node', [join('scripts', 'seed.ts')], 'the Worker is not started; see above')
  const wrangler = startWrangler()
  await untilHealthy(wrangler)
  greet()
  const code = await wrangler.ended
  if (!stopping) throw new Error(`wrangler ended by itself (exit code ${code}); see above`)
}

/** A clear word now is better than wrangler choosing another port later. */
function checkPortIsFree() {
  return new Promise((resolve, reject) => {
    const probe = createServer()
    probe.once('error', (error) => {
      const taken = error.code === 'EADDRINUSE'
      reject(
        new Error(
          taken ? `Port ${port} is taken. Choose another one: PORT=${port + 1} npm start` : error.message,
        ),
      )
    })
    probe.listen(port, '127.0.0.1', () => probe.close(resolve))
  })
}

/** How many packages of the lockfile are not there in the version that it names. */
function missingPackages() {
  const { packages } = JSON.parse(readFileSync(join(ROOT, 'package-lock.json'), 'utf8'))
  const installed = (path) => {
    const file = join(ROOT, path, 'package.json')
    return existsSync(file) ? JSON.parse(readFileSync(file, 'utf8')).version : undefined
  }
  return Object.entries(packages).filter(
    // Optional ones are for other machines.
    ([path, { version, link, optional }]) =>
      path.includes('node_modules/') && !link && !optional && installed(path) !== version,
  ).length
}

function kernelsAreStale() {
  const built = ['plain.wasm', 'relaxed.wasm'].map((name) => join(ROOT, 'engine', 'dist', name))
  if (!built.every(existsSync)) return true
  const sources = readdirSync(join(ROOT, 'engine', 'assembly'), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => statSync(join(entry.parentPath, entry.name)).mtimeMs)
  return Math.max(...sources) > Math.min(...built.map((file) => statSync(file).mtimeMs))
}

function startWrangler() {
  return start(
    'wrangler',
    [
      'dev',
      '--ip',
      '127.0.0.1',
      '--port',
      String(port),
      '--inspector-port',
      '0',
      '--log-level',
      'warn',
    ].concat('--show-interactive-dev-session', 'false'),
    {
      // No question, no telemetry, no call to the network.
      CI: '1',
      WRANGLER_SEND_METRICS: 'false',
      WRANGLER_SEND_ERROR_REPORTS: 'false',
      WRANGLER_WRITE_LOGS: 'false',
      WRANGLER_HIDE_BANNER: 'true',
      CLOUDFLARE_CF_FETCH_ENABLED: 'false',
      X_LOCAL_EXPLORER: 'false',
      X_LOCAL_OBSERVABILITY: 'false',
      // API_KEY and the like reach the Worker from here.
      CLOUDFLARE_INCLUDE_PROCESS_ENV: 'true',
    },
  )
}

async function untilHealthy(wrangler) {
  let ended = false
  wrangler.ended.then(() => {
    ended = true
  })
  const deadline = Date.now() + 60_000
  while (!ended && !stopping && Date.now() < deadline) {
    const response = await fetch(`http://127.0.0.1:${port}/health`).catch(() => undefined)
    if (response?.ok) return
    await new Promise((resolve) => setTimeout(resolve, 100))
  }
  throw new Error(
    ended ? 'the Worker did not start; see above' : 'the Worker did not become healthy within a minute',
  )
}

function greet() {
  const url = `http://localhost:${port}`
  const body = {
    messages: [{ role: 'user', content: 'Why is the sky blue?' }],
    temperature: 0,
    max_tokens: 100,
    stream: true,
  }
  const key = process.env.API_KEY ? ' -H "Authorization: Bearer $API_KEY"' : ''
  console.log(`
Ready:      ${url}
Chat page:  ${url}/
Try:        curl -N ${url}/v1/chat/completions${key} -H 'Content-Type: application/json' -d '${JSON.stringify(body)}'

Ctrl-C ends it.`)
}

/** Runs a command to its end, with what it prints. */
async function run(command, args, failure) {
  const code = await start(command, args).ended
  if (code !== 0) throw new Error(failure)
}

/** Starts a command in a process group of its own, so that ending the group ends whatever it started. */
function start(command, args, env = {}) {
  if (stopping) throw new Error('stopping')
  const child = spawn(command, args, {
    cwd: ROOT,
    env: { ...process.env, ...env, PATH: `${BIN}${delimiter}${process.env.PATH}` },
    stdio: ['ignore', 'inherit', 'inherit'],
    detached: true,
  })
  const ended = new Promise((resolve) => {
    child.once('error', (error) => {
      console.error(error.message)
      resolve(1)
    })
    child.once('exit', (code) => resolve(code ?? 1))
  }).finally(() => children.delete(entry))
  const entry = { child, ended }
  children.add(entry)
  return entry
}

/** Ends every process that was started, by force after five seconds, and then this one. */
async function stop(signal) {
  if (stopping) return
  stopping = true
  const groups = [...children]
  const kill = (name) => {
    for (const { child } of groups) {
      try {
        process.kill(-child.pid, name)
      } catch {
        // The group has ended.
      }
    }
  }
  kill('SIGTERM')
  const force = setTimeout(() => kill('SIGKILL'), 5000)
  await Promise.all(groups.map(({ ended }) => ended))
  clearTimeout(force)
  process.exit(typeof signal === 'string' ? 0 : 1)
}
