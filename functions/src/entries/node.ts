/**
 * @module
 * Node: `MODEL=… STORE=… npm run serve:node`
 */
import { serve } from '@hono/node-server'
import { cannotStart, localApp } from './local.ts'

const { app, hostname, port } = await localApp(process.env).catch(cannotStart)

const server = serve({ fetch: app.fetch, hostname, port }, ({ port }) =>
  console.log(`http://${hostname}:${port}`),
)
server.once('error', cannotStart)

/** Takes no more requests and lets those under way end; a second signal ends them too. */
for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  process.once(signal, () => {
    server.close()
    // A connection that falls idle from now on is not kept for another request.
    if ('keepAliveTimeout' in server) server.keepAliveTimeout = 1
    process.once(signal, () => process.exit(1))
  })
}
