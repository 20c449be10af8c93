/**
 * @module
 * Looks into a running Worker through V8's inspector, which wrangler offers on a port: how much its isolate holds.
 */
import { z } from 'zod'

const Targets = z.array(z.object({ webSocketDebuggerUrl: z.string() })).min(1)
/** An answer has the `id` of its call, an event has none. */
const Message = z.object({
  id: z.int().optional(),
  error: z.object({ message: z.string() }).optional(),
  method: z.string().optional(),
  params: z.unknown().optional(),
})
const Chunk = z.object({ chunk: z.string() })
const Snapshot = z.object({
  snapshot: z.object({ meta: z.object({ node_fields: z.array(z.string()) }) }),
  /** Per node one number for each field; `name` is an index into `strings`, `self_size` bytes. */
  nodes: z.array(z.number()),
  strings: z.array(z.string()),
})

/** Bytes that an isolate holds after its garbage has been collected. */
export interface IsolateMemory {
  /** Everything: objects of JavaScript and of the platform, code, buffers, WebAssembly memories. */
  readonly total: number
  /** The bytes of every buffer and every WebAssembly memory, the largest first. */
  readonly buffers: readonly number[]
}

export interface Inspector {
  memory(): Promise<IsolateMemory>
  close(): void
}

/** Opens a session with the only Worker that `wrangler dev --inspector-port` serves. */
export async function inspect(port: number): Promise<Inspector> {
  const [target] = Targets.parse(await (await fetch(`http://127.0.0.1:${port}/json`)).json())
  // wrangler lets nobody in who does not say where they come from. The DOM's constructor, by whose types bench/ is checked,
  // takes no headers; Node's does.
  const headers = { origin: 'http://localhost' }
  const socket: WebSocket = Reflect.construct(WebSocket, [target.webSocketDebuggerUrl, { headers }])
  await new Promise((resolve, reject) => {
    socket.onopen = resolve
    socket.onerror = () => reject(new Error('the inspector lets nobody in'))
  })
  const waiting = new Map<number, { resolve: () => void; reject: (error: Error) => void }>()
  const chunks: string[] = []
  socket.onmessage = ({ data }) => {
    const { id, error, method, params } = Message.parse(JSON.parse(String(data)))
    if (method === 'HeapProfiler.addHeapSnapshotChunk') chunks.push(Chunk.parse(params).chunk)
    if (id === undefined) return
    if (error) waiting.get(id)?.reject(new Error(error.message))
    else waiting.get(id)?.resolve()
  }
  let calls = 0
  const call = (method: string, params: object = {}) =>
    new Promise<void>((resolve, reject) => {
      waiting.set(++calls, { resolve, reject })
      socket.send(JSON.stringify({ id: calls, method, params }))
    })
  await call('HeapProfiler.enable')
  return {
    // V8's own sum (Runtime.getHeapUsage) leaves WebAssembly memories out; a snapshot, which collects garbage first,
    // has them.
    async memory() {
      chunks.length = 0
      await call('HeapProfiler.takeHeapSnapshot', { reportProgress: false })
      return sizes(Snapshot.parse(JSON.parse(chunks.join(''))))
    },
    close: () => socket.close(),
  }
}

function sizes({ snapshot, nodes, strings }: z.infer<typeof Snapshot>): IsolateMemory {
  const fields = snapshot.meta.node_fields
  const [name, size] = [fields.indexOf('name'), fields.indexOf('self_size')]
  const buffers: number[] = []
  let total = 0
  for (let node = 0; node < nodes.length; node += fields.length) {
    const bytes = nodes[node + size]
    total += bytes
    if (strings[nodes[node + name]] === 'system / JSArrayBufferData') buffers.push(bytes)
  }
  return { total, buffers: buffers.sort((a, b) => b - a) }
}
