/**
 * @module
 * `npm test`: everything, from a fresh clone. Installs what is missing, builds the kernels, checks formatting and types,
 * then runs the parts of vitest.config.ts and the trainer's pytest one after the other. The last line is `N passed, N
 * failed`; a skipped test is a failed one, and so is a run without tests. Runs on any Node from 20 on; everything behind
 * it runs on the Node that the lockfile pins. Only the part `trainer` needs Python (3.11 or later).
 */
import { spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { delimiter, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

const ROOT = fileURLToPath(new URL('..', import.meta.url))
const BIN = join(ROOT, 'node_modules', '.bin')
const PARTS = ['checks', 'unit', 'cross', 'trainer', 'runtimes', 'e2e', 'budget']
const TRAINER_TESTS = 'weights-tool/train/tests'
const HELP = `npm test                          all parts: ${PARTS.join(', ')}
npm test -- --only unit,cross     some of them
npm test -- residency             the test files whose path contains a word`
/** One command each, and one line of the count. */
const CHECKS = [
  ['chromium', 'node', ['test/chromium.ts']],
  ['format and lint', 'biome', ['check', '.']],
  ['types', 'tsc', ['--noEmit']],
  ['types of a page', 'tsc', ['--noEmit', '-p', 'test/runtimes/browser']],
]

const { only, filters } = parseCommandLine()
const count = { passed: 0, failed: 0 }
const lines = []

if (!existsSync(join(ROOT, 'node_modules', '.package-lock.json'))) {
  await part('install', () => required('npm', ['ci', '--no-audit', '--no-fund', '--loglevel=error']))
}
await part('build', () => required('npm', ['run', '--silent', 'build']))
for (const name of only) await part(name, { checks, trainer }[name] ?? (() => tests(name)))

if (count.passed + count.failed === 0) {
  console.error('No test was run.')
  count.failed = 1
}
console.log(`\n${lines.join('\n')}\n`)
console.log(`${count.passed} passed, ${count.failed} failed`)
process.exitCode = count.failed === 0 ? 0 : 1

function parseCommandLine() {
  const options = { only: { type: 'string' }, help: { type: 'boolean' } }
  const { values, positionals } = parseArgs({ options, allowPositionals: true })
  if (values.help) {
    console.log(HELP)
    process.exit()
  }
  // Files that a word picks are tests; the checks know no files.
  const all = positionals.length === 0 ? PARTS : PARTS.slice(1)
  const only = values.only?.split(',') ?? all
  const unknown = only.find((name) => !PARTS.includes(name))
  if (unknown !== undefined) {
    console.error(`There is no part "${unknown}"; the parts are ${PARTS.join(', ')}.`)
    process.exit(2)
  }
  return { only, filters: positionals }
}

/** Runs one part and notes how long it took and what it counted. */
async function part(name, work) {
  console.log(`\n── ${name} ${'─'.repeat(Math.max(0, 76 - name.length))}`)
  const [start, before] = [performance.now(), { ...count }]
  await work()
  const seconds = ((performance.now() - start) / 1000).toFixed(1)
  const passed = count.passed - before.passed
  const failed = count.failed - before.failed
  lines.push(`${name.padEnd(10)} ${seconds.padStart(7)} s  ${passed} passed, ${failed} failed`)
}

/** What nothing can be tested without. */
async function required(command, args) {
  if ((await run(command, args)) === 0) return
  console.error(`\n${command} ${args.join(' ')} failed; see above.\n0 passed, 1 failed`)
  process.exit(1)
}

async function checks() {
  for (const [name, command, args] of CHECKS) {
    const ok = (await run(command, args)) === 0
    console.log(`${ok ? '✓' : '✗'} ${name}`)
    count[ok ? 'passed' : 'failed'] += 1
  }
}

/** One part of vitest.config.ts. */
async function tests(project) {
  const folder = await mkdtemp(join(tmpdir(), 'sparsedge-test-'))
  const report = join(folder, 'report.json')
  // With words, most parts have no file that one of them picks.
  const words = filters.length > 0 ? [...filters, '--passWithNoTests'] : []
  const reporters = ['--reporter=default', '--reporter=json', `--outputFile.json=${report}`]
  const code = await run('vitest', ['run', '--project', project, ...reporters, ...words])
  const { passed, failed, skipped } = existsSync(report)
    ? countTests(JSON.parse(await readFile(report, 'utf8')))
    : { passed: 0, failed: 0, skipped: [] }
  await rm(folder, { recursive: true })
  for (const name of skipped) console.error(`Skipped, which counts as failed: ${name}`)
  count.passed += passed
  // vitest also fails on what belongs to no test: an unhandled error, a file that does not load, no test at all.
  count.failed += Math.max(failed + skipped.length, code === 0 ? 0 : 1)
}

/** pytest, in the trainer's own environment. */
async function trainer() {
  const files = await readdir(join(ROOT, TRAINER_TESTS))
  const chosen = files
    .filter((file) => /^test_.*\.py$/.test(file))
    .map((file) => `${TRAINER_TESTS}/${file}`)
    .filter((path) => filters.length === 0 || filters.some((word) => path.includes(word)))
  if (chosen.length === 0) return
  const folder = await mkdtemp(join(tmpdir(), 'sparsedge-test-'))
  const report = join(folder, 'report.xml')
  const code = await run('node', ['scripts/pytest.ts', `--junitxml=${report}`, ...chosen])
  const suite = existsSync(report) ? await readFile(report, 'utf8') : ''
  await rm(folder, { recursive: true })
  const counted = (word) => Number(new RegExp(`<testsuite [^>]*\\b${word}="(\\d+)"`).exec(suite)?.[1] ?? 0)
  for (const [, name] of suite.matchAll(/<testcase [^>]*\bname="([^"]*)"[^>]*><skipped/g)) {
    console.error(`Skipped, which counts as failed: ${name}`)
  }
  const failed = counted('failures') + counted('errors') + counted('skipped')
  count.passed += counted('tests') - failed
  count.failed += Math.max(failed, code === 0 ? 0 : 1)
}

function countTests({ testResults }) {
  const tests = testResults.flatMap(({ assertionResults }) => assertionResults)
  const having = (...statuses) => tests.filter(({ status }) => statuses.includes(status))
  const broken = testResults.filter(
    ({ status, assertionResults }) =>
      status === 'failed' && !assertionResults.some((test) => test.status === 'failed'),
  )
  return {
    passed: having('passed').length,
    failed: having('failed').length + broken.length,
    skipped: having('skipped', 'pending', 'todo', 'disabled').map(({ fullName }) => fullName),
  }
}

/** Runs a command to its end, with what it prints. */
function run(command, args) {
  const child = spawn(command, args, {
    cwd: ROOT,
    env: {
      ...process.env,
      PATH: `${BIN}${delimiter}${process.env.PATH}`,
      // wrangler: no question, no telemetry, no call to the network.
      CI: '1',
      WRANGLER_SEND_METRICS: 'false',
      WRANGLER_SEND_ERROR_REPORTS: 'false',
      WRANGLER_HIDE_BANNER: 'true',
      CLOUDFLARE_CF_FETCH_ENABLED: 'false',
    },
    stdio: ['ignore', 'inherit', 'inherit'],
  })
  return new Promise((resolve) => {
    child.once('error', (error) => {
      console.error(error.message)
      resolve(1)
    })
    child.once('exit', (code) => resolve(code ?? 1))
  })
}
