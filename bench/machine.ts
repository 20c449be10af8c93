/**
 * @module
 * The machine that measures: what it is, and how everything is kept on one of its cores.
 */
import { execFileSync } from 'node:child_process'

/** Pins this process, and with it all that it starts from now on, to one core. */
export function pin(core: number): boolean {
  try {
    execFileSync('taskset', ['--all-tasks', '--cpu-list', '--pid', String(core), String(process.pid)], {
      stdio: ['ignore', 'ignore', 'inherit'],
    })
    return true
  } catch {
    console.error('Nothing is pinned to a core: there is no taskset here.')
    return false
  }
}
