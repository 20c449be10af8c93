/**
 * @module
 * Other processes: started, watched until they say what they should, and gone afterwards.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { createServer } from 'node:net'
import { delimiter, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'

export const ROOT = fileURLToPath(new URL('..', import.meta.url))
export const BIN = join(ROOT, 'node_modules', '.bin')

export interface Program {
  readonly child: ChildProcess
  /** All that it has printed so far. */
  output(): string
  /** Waits until its output matches; fails where it ends before. */
  until(pattern: RegExp, seconds?: number): Promise<RegExpExecArray>
  /** Its exit code, when it has ended; null where a signal ended it. */
  readonly exit: Promise<number | null>
  /** Asks it to end, and waits until it has. */
  stop(): Promise<number | null>
}

/** Starts a program in the project's root, with the project's own Node and tools first in its path. */
export function start(command: string, args: readonly string[], env: Record<string, string> = {}): Program {
  const child = spawn(command, args, {
    cwd: ROOT,
    env: { ...process.env, NO_COLOR: '1', ...env, PATH: `${BIN}${delimiter}${process.env.PATH}` },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  // A test that is interrupted takes what it started with it.
  const orphaned = () => child.kill()
  process.once('exit', orphaned)
  let output = ''
  let ended = false
  const listeners = new Set<() => void>()
  const changed = () => {
    for (const listener of listeners) listener()
  }
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (text: string) => {
      output += text
      changed()
    })
  }
  const exit = new Promise<number | null>((resolve, reject) => {
    child.once('error', reject)
    // Not `close`, which waits for whoever else holds its output open.
    child.once('exit', (code) => {
      process.off('exit', orphaned)
      ended = true
      changed()
      resolve(code)
    })
  })
  // A program that cannot be started fails whoever waits for it, and only them.
  exit.catch(() => {})
  return {
    child,
    exit,
    output: () => output,
    until: (pattern, seconds = 60) =>
      new Promise((resolve, reject) => {
        const settle = (act: () => void) => {
          clearTimeout(timer)
          listeners.delete(look)
          act()
        }
        const fail = (why: string) =>
          settle(() => reject(new Error(`${command} ${why}; it printed:\n${output}`)))
        const look = () => {
          const found = pattern.exec(output)
          if (found) settle(() => resolve(found))
          else if (ended) fail(`ended before it printed ${pattern}`)
        }
        const timer = setTimeout(() => fail(`did not print ${pattern} in ${seconds} s`), seconds * 1000)
        listeners.add(look)
        look()
      }),
    async stop() {
      if (!ended) child.kill('SIGTERM')
      return exit
    },
  }
}

export interface Process {
  readonly pid: number
  readonly parent: number
  readonly command: string
}

/** Everything that a process has started, and what that has started, as far as it still runs. */
export async function descendants(pid: number): Promise<Process[]> {
  const all = await processes()
  const found = all.filter(({ parent }) => parent === pid)
  // Grows while it is walked: each one's children follow it.
  for (const { pid } of found) found.push(...all.filter(({ parent }) => parent === pid))
  return found
}

/** Those of the given processes that still run. */
export async function stillRunning(given: readonly Process[]): Promise<Process[]> {
  const pids = new Set((await processes()).map(({ pid }) => pid))
  return given.filter(({ pid }) => pids.has(pid))
}

async function processes(): Promise<Process[]> {
  const { stdout } = await promisify(execFile)('ps', ['-A', '-o', 'pid=,ppid=,stat=,args='])
  return stdout.split('\n').flatMap((line) => {
    const [, pid, parent, state, command] = /^\s*(\d+)\s+(\d+)\s+(\S+)\s+(.*)$/.exec(line) ?? []
    // A zombie has ended; only its parent has not asked.
    return pid === undefined || state.startsWith('Z')
      ? []
      : [{ pid: Number(pid), parent: Number(parent), command }]
  })
}

/** A port that nobody listens on now. */
export function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const probe = createServer()
    probe.once('error', reject)
    probe.listen(0, '127.0.0.1', () => {
      const address = probe.address()
      probe.close(() =>
        typeof address === 'object' && address ? resolve(address.port) : reject(new Error('no port')),
      )
    })
  })
}
