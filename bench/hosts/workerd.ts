/**
 * @module
 * Ours in workerd: `wrangler dev` on the Worker of worker.ts and a local R2 bucket.
 */
import { startWorker } from '../../test/servers.ts'
import { STATE, WORKER_CONFIG } from '../paths.ts'
import type { Host } from './task.ts'

export async function workerdHost(): Promise<Host> {
  const server = await startWorker({ state: STATE, config: WORKER_CONFIG })
  const call = async (path: string, body?: string) => {
    const response = await fetch(`${server.url}${path}`, { method: 'POST', ...(body && { body }) })
    if (!response.ok) throw new Error(`the Worker answered ${response.status}: ${await response.text()}`)
    return response.json()
  }
  return {
    name: 'workerd',
    generate: async (task) =>
      (await call('/', JSON.stringify(task))) as Awaited<ReturnType<Host['generate']>>,
    read: async () => (await call('/read')) as number,
    close: () => server.stop(),
  }
}
