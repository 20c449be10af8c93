import { execFile } from 'node:child_process'
import { chmod, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, afterEach, beforeAll, expect, it, vi } from 'vitest'
import { findPython, trainerPython } from './trainer.ts'

const CLI = fileURLToPath(new URL('./cli.ts', import.meta.url))

let directory: string
beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'trainer-'))
})
afterAll(() => rm(directory, { recursive: true }))
afterEach(() => {
  vi.unstubAllEnvs()
})

/**
 * A program that answers the question for version and packages as a Python would, and otherwise prints its arguments and
 * ends with `code`. (What a real Python does with them is tested by weights-tool/train/tests/test_weights_tool.py.)
 */
async function python(name: string, answer: string, code = 0): Promise<string> {
  const path = join(directory, name)
  await writeFile(path, `#!/bin/sh\n[ "$1" = -c ] && { echo ${answer}; exit 0; }\necho "$@"\nexit ${code}\n`)
  await chmod(path, 0o755)
  return path
}

/** Runs the real command line in a process of its own. */
function run(...args: string[]): Promise<{ code: number; stdout: string; stderr: string }> {
  return new Promise((done) => {
    execFile(process.execPath, [CLI, ...args], (error, stdout, stderr) => {
      done({ code: typeof error?.code === 'number' ? error.code : 0, stdout, stderr })
    })
  })
}

it.each([
  [
    'upcycle',
    ['--gpus', '2'],
    '-m torch.distributed.run --standalone --nproc-per-node=2 -m dsmoe_train upcycle a.toml',
  ],
  ['train', ['--gpus', '1'], '-m dsmoe_train train a.toml'],
  ['eval', [], '-m dsmoe_train eval a.toml'],
])('%s %s hands everything on', async (command, flags, expected) => {
  const program = await python('new', '3.12')
  const set = ['--set', 'run.seed=7', '--set', 'data.sources=[{directory="x y"}]']
  expect(await run(command, 'a.toml', '--python', program, ...flags, ...set)).toEqual({
    code: 0,
    stdout: `${expected} ${set.join(' ')}\n`,
    stderr: '',
  })
})

it('ends with 1 where the trainer fails, and leaves the words to it', async () => {
  const program = await python('failing', '3.12', 3)
  expect(await run('data', 'a.toml', '--python', program)).toMatchObject({ code: 1, stderr: '' })
})

it.each([
  ['old', '3.10', 'training needs Python 3.11 or later'],
  ['ancient', '2.7', 'training needs Python 3.11 or later'],
  ['bare', '3.12 torch tqdm', 'has no torch, tqdm'],
])('says what is wrong with a Python: %s', async (name, answer, message) => {
  const error = {
    name: 'SparsedgeError',
    code: 'backend_unavailable',
    message: expect.stringContaining(message),
  }
  await expect(trainerPython(await python(name, answer))).rejects.toMatchObject(error)
})

it('says that a Python does not run', async () => {
  const { code, stderr } = await run('train', 'a.toml', '--python', join(directory, 'none'))
  expect({ code, stderr }).toMatchObject({ code: 1, stderr: expect.stringContaining('none does not run') })
})

it.each([
  [['--gpus', '0'], 'a positive whole number'],
  [['--gpus', 'two'], 'a positive whole number'],
])('refuses %s', async (flags, message) => {
  const program = await python('new', '3.12')
  expect(await run('train', 'a.toml', '--python', program, ...flags)).toMatchObject({
    code: 1,
    stderr: expect.stringContaining(message),
  })
})

it('finds the first Python that is new enough', async () => {
  vi.stubEnv('PATH', directory)
  await expect(findPython()).rejects.toThrow('there is none')
  await python('python', '3.9')
  await expect(findPython()).rejects.toThrow('python is 3.9')
  await python('python3.12', '3.12')
  expect(await findPython()).toBe('python3.12')
})
