/**
 * @module
 * A static file server on the loopback address: a pack directory, the kernels, and the page for the browser.
 */
import { serve } from '@hono/node-server'
import { serveStatic } from '@hono/node-server/serve-static'
import { Hono } from 'hono'

export interface StaticServer {
  readonly address: string
  close(): Promise<void>
}

const EMPTY = '<!doctype html><script type="module" src="/script.js"></script>'

/** Serves the files of several folders as if they were one, and a page with its script. */
export async function serveFolders(
  folders: readonly string[],
  script: string,
  page = EMPTY,
): Promise<StaticServer> {
  const app = new Hono()
  app.get('/', (c) => c.html(page))
  for (const root of folders) app.use(serveStatic({ root }))
  app.get('/script.js', (c) => c.body(script, 200, { 'content-type': 'text/javascript' }))
  return new Promise((resolve) => {
    const server = serve({ fetch: app.fetch, hostname: '127.0.0.1', port: 0 }, ({ port }) =>
      resolve({
        address: `http://127.0.0.1:${port}`,
        close: () => new Promise((closed) => server.close(() => closed())),
      }),
    )
  })
}
