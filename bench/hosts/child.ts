/**
 * @module
 * Hosts that are child processes of Node: both ends of the line.
 */
import { fork } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import type { Answer, Host, Task } from './task.ts'

type Call = { readonly generate: Task } | { readonly read: true }
type Reply = { readonly value: unknown } | { readonly error: string }

/** In the child: answers every call with what the meter says, and ends when nobody can call any more. */
export function answer(meter: { generate(task: Task): Promise<Answer>; read?(): number }): void {
  process.on('disconnect', () => process.exit())
  process.on('message', async (call: Call) => {
    let reply: Reply
    try {
      reply = { value: 'generate' in call ? await meter.generate(call.generate) : meter.read?.() }
    } catch (error) {
      reply = { error: error instanceof Error ? (error.stack ?? error.message) : String(error) }
    }
    process.send?.(reply)
  })
}

/** In the driver: starts `<program>.ts` of this folder and calls it. */
export function childHost(name: string, program: string, args: readonly string[]): Host {
  const path = fileURLToPath(new URL(`${program}.ts`, import.meta.url))
  const child = fork(path, args, { stdio: ['ignore', 'ignore', 'inherit', 'ipc'] })
  const call = async <T>(message: Call): Promise<T> => {
    const ended = new AbortController()
    const exited = once(child, 'exit', { signal: ended.signal }).then(([code]) => {
      throw new Error(`${name} ended with code ${code}`)
    })
    child.send(message)
    try {
      const [reply] = await Promise.race([once(child, 'message', { signal: ended.signal }), exited])
      if ('error' in reply) throw new Error(`${name}: ${reply.error}`)
      return reply.value
    } finally {
      ended.abort()
      exited.catch(() => {})
    }
  }
  return {
    name,
    generate: (task) => call({ generate: task }),
    read: () => call({ read: true }),
    async close() {
      const exited = once(child, 'exit')
      child.disconnect()
      await exited
    },
  }
}
