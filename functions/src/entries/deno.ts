/**
 * @module
 * Deno: `MODEL=… STORE=… npm run serve:deno`. Its flag `--unstable-no-legacy-abort` is for a quiet start: without it Deno
 * fires a request's signal also when its answer has been sent, which is harmless here, and says so once.
 */
import { cannotStart, localApp } from './local.ts'

const { app, hostname, port } = await localApp(Deno.env.toObject()).catch(cannotStart)

const server = listen()

/** Takes no more requests and lets those under way end; a second signal ends them too. */
for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  const stop = () => {
    Deno.removeSignalListener(signal, stop)
    server.shutdown()
  }
  Deno.addSignalListener(signal, stop)
}

function listen() {
  const onListen = ({ port }: { port: number }) => console.log(`http://${hostname}:${port}`)
  try {
    return Deno.serve({ hostname, port, onListen }, app.fetch)
  } catch (error) {
    cannotStart(error)
  }
}
