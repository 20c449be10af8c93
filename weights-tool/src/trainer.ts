/**
 * @module
 * The Python side of the tool (`weights-tool/train`): finds Python, keeps the environment that the trainer runs in, and
 * runs it. The environment is a folder beside the package, made on first use from the pinned requirements.txt and made
 * anew when that changes.
 */
import { execFile, spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { readFile, writeFile } from 'node:fs/promises'
import { delimiter, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { SparsedgeError } from '@sparsedge/engine/errors'

const HOME = fileURLToPath(new URL('../train', import.meta.url))
const REQUIREMENTS = join(HOME, 'requirements.txt')
const ENVIRONMENT = join(HOME, '.venv')
/** Written last: the hash of the requirements that the environment was made from. */
const STAMP = join(ENVIRONMENT, 'requirements.sha256')
const OLDEST_MINOR = 11
const CANDIDATES = ['python3', 'python3.14', 'python3.13', 'python3.12', 'python3.11', 'python']
/** What every command imports; .parquet files, TensorBoard and the tests need more of requirements.txt. */
const IMPORTED = 'jinja2 matplotlib numpy pydantic safetensors scipy tokenizers torch tqdm'.split(' ')

export interface TrainerOptions {
  /** A Python that has the packages already, such as a GPU image's own; by default the environment made here. */
  readonly python?: string
  /** More than 1: one process per GPU, started by torchrun. */
  readonly gpus?: number
}

/**
 * Runs `python -m <module> <args>` to its end, with what it prints going where this process's own output goes.
 *
 * @returns its exit code, 1 if a signal ended it
 * @throws SparsedgeError as {@link trainerPython} does
 */
export async function runTrainer(
  module: string,
  args: readonly string[],
  { python, gpus = 1 }: TrainerOptions = {},
): Promise<number> {
  const program = await trainerPython(python)
  const torchrun = ['-m', 'torch.distributed.run', '--standalone', `--nproc-per-node=${gpus}`]
  return run(program, [...(gpus > 1 ? torchrun : []), '-m', module, ...args])
}

/**
 * The Python to run the trainer with. Without one given, makes the environment if it is not there (1.5 GB, minutes).
 *
 * @throws SparsedgeError `backend_unavailable` if there is no Python 3.11, it lacks packages, or they cannot be installed
 */
export async function trainerPython(given?: string): Promise<string> {
  if (given !== undefined) {
    const { version, missing } = (await ask(given)) ?? {}
    if (version === undefined || missing === undefined)
      throw lacking(`${given} does not run, or is no Python`)
    if (!isNewEnough(version))
      throw lacking(`training needs Python 3.${OLDEST_MINOR} or later; ${given} is ${version}`)
    if (missing.length === 0) return given
    throw lacking(`${given} has no ${missing.join(', ')}: ${given} -m pip install -r ${REQUIREMENTS}`)
  }
  const python = join(
    ENVIRONMENT,
    ...(process.platform === 'win32' ? ['Scripts', 'python.exe'] : ['bin', 'python']),
  )
  const wanted = createHash('sha256')
    .update(await readFile(REQUIREMENTS))
    .digest('hex')
  const made = await readFile(STAMP, 'utf8').catch(() => '')
  if (made === wanted && (await ask(python))?.missing.length === 0) return python

  const base = await findPython()
  console.error(`Setting up Python for training in ${ENVIRONMENT} (once, 1.5 GB or more) …`)
  await required(
    base,
    ['-m', 'venv', '--clear', ENVIRONMENT],
    `${base} cannot make environments; is its venv installed?`,
  )
  const pip = [
    '-m',
    'pip',
    'install',
    '--quiet',
    '--no-compile',
    '--disable-pip-version-check',
    '-r',
    REQUIREMENTS,
  ]
  await required(
    python,
    pip,
    'the packages of the trainer could not be installed; is the package index reachable?',
  )
  await writeFile(STAMP, wanted)
  return python
}

/** The first Python on the PATH that is new enough. */
export async function findPython(): Promise<string> {
  const old: string[] = []
  for (const name of CANDIDATES) {
    const answer = await ask(name)
    if (answer && isNewEnough(answer.version)) return name
    if (answer) old.push(`${name} is ${answer.version}`)
  }
  const found = old.length === 0 ? 'there is none on the PATH' : old.join(', ')
  throw lacking(`training needs Python 3.${OLDEST_MINOR} or later, and ${found}: install one`)
}

/** What a Python says of itself: its version, and packages of `IMPORTED` that it lacks. Undefined if it does not run. */
async function ask(python: string): Promise<{ version: string; missing: readonly string[] } | undefined> {
  const question = `import importlib.util as u, sys
print('%d.%d' % sys.version_info[:2], *(name for name in ${JSON.stringify(IMPORTED)} if u.find_spec(name) is None))`
  const answer = await promisify(execFile)(python, ['-c', question]).catch(() => undefined)
  const [version, ...missing] = answer?.stdout.trim().split(' ') ?? []
  return version === undefined ? undefined : { version, missing }
}

function isNewEnough(version: string): boolean {
  const [major, minor] = version.split('.').map(Number)
  return major === 3 && minor >= OLDEST_MINOR
}

async function required(command: string, args: readonly string[], otherwise: string): Promise<void> {
  if ((await run(command, args)) !== 0) throw lacking(`${otherwise} (see above)`)
}

/** Runs a program to its end; it shares this process's terminal. */
function run(command: string, args: readonly string[]): Promise<number> {
  const path = process.env.PYTHONPATH
  const child = spawn(command, args, {
    env: {
      ...process.env,
      PYTHONPATH: path ? `${HOME}${delimiter}${path}` : HOME,
      PYTHONUNBUFFERED: '1',
      // Without bytecode on disk every start of PyTorch takes ten seconds more; installing writes none.
      PYTHONDONTWRITEBYTECODE: '',
    },
    // Its results are ours, and so are its progress and its errors.
    stdio: 'inherit',
  })
  // A terminal interrupts both: the child saves what it has, and this process waits for it. Others signal this one only.
  const wait = () => undefined
  const pass = () => child.kill('SIGTERM')
  process.on('SIGINT', wait).on('SIGTERM', pass)
  return new Promise<number>((resolve, reject) => {
    child.once('error', (error) => reject(error))
    child.once('exit', (code) => resolve(code ?? 1))
  }).finally(() => process.off('SIGINT', wait).off('SIGTERM', pass))
}

function lacking(message: string): SparsedgeError {
  return new SparsedgeError('backend_unavailable', message)
}
