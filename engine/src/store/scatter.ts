/**
 * @module
 * From a byte stream into memory through one small buffer that is used again and again, so that shards never pile up
 * on the JS heap. (A WASM memory itself cannot be handed to a stream: it cannot be detached.)
 */
import { throwIfCancelled } from '../errors.ts'
import { checkManifestSize, checkSize, Filler } from './fill.ts'
import type { Destination, Progress, Tier } from './store.ts'

/** What is used of a ReadableStream of bytes; the runtimes' own types differ in the rest. */
export interface ByteStream {
  getReader(): ChunkReader
  getReader(options: { mode: 'byob' }): BufferReader
}

interface ChunkReader {
  read(): Promise<{ done: boolean; value?: Uint8Array | undefined }>
  cancel(): Promise<void>
}

interface BufferReader {
  read(view: Uint8Array<ArrayBuffer>): Promise<{ done: boolean; value?: Uint8Array<ArrayBuffer> | undefined }>
  cancel(): Promise<void>
}

/**
 * Fills the destinations from a stream, exactly. After any failure the stream is cancelled.
 *
 * @param size of the whole object, where the store states it: a wrong one is refused before a byte is read
 * @throws SparsedgeError `shard_too_short`, `shard_too_long`, `cancelled`; whatever the stream fails with
 */
export async function scatter(
  body: ByteStream,
  size: number | undefined,
  into: readonly Destination[],
  shard: string,
  tier: Tier,
  signal?: AbortSignal,
  progress?: Progress,
): Promise<void> {
  progress?.()
  const reader = new BodyReader(body, signal)
  try {
    if (size !== undefined) checkSize(size, into, shard, tier)
    const filler = new Filler(into, shard, tier)
    for (let chunk = await reader.next(); chunk; chunk = await reader.next()) {
      progress?.()
      filler.take(chunk)
    }
    filler.finish()
  } finally {
    reader.close()
  }
}

/**
 * The bytes of a manifest, from a stream.
 *
 * @throws SparsedgeError `manifest_malformed` if it is larger than any manifest can be
 */
export async function gather(body: ByteStream, tier: Tier, signal?: AbortSignal): Promise<Uint8Array> {
  const reader = new BodyReader(body, signal)
  const chunks: Uint8Array[] = []
  let size = 0
  try {
    for (let chunk = await reader.next(); chunk; chunk = await reader.next()) {
      size += chunk.length
      checkManifestSize(size, tier)
      chunks.push(chunk.slice())
    }
  } finally {
    reader.close()
  }
  const bytes = new Uint8Array(size)
  let offset = 0
  for (const chunk of chunks) {
    bytes.set(chunk, offset)
    offset += chunk.length
  }
  return bytes
}

const BUFFER_BYTES = 1 << 16
/** Buffers that no reader holds: never more than there were readers at once. */
const spare: ArrayBuffer[] = []

/** Reads a stream in chunks, each valid until the next is asked for. */
class BodyReader {
  readonly #reader: ChunkReader
  readonly #signal: AbortSignal | undefined

  constructor(body: ByteStream, signal: AbortSignal | undefined) {
    this.#reader = bufferedReader(body) ?? body.getReader()
    this.#signal = signal
    signal?.addEventListener('abort', this.#cancel, { once: true })
  }

  /** The next chunk; undefined at the end. @throws SparsedgeError `cancelled` */
  async next(): Promise<Uint8Array | undefined> {
    throwIfCancelled(this.#signal)
    const { done, value } = await this.#reader.read()
    throwIfCancelled(this.#signal)
    return done ? undefined : value
  }

  /** Cancels what was not read. */
  close(): void {
    this.#signal?.removeEventListener('abort', this.#cancel)
    this.#cancel()
  }

  /** A cancelled stream ends, so a pending read comes back at once, even while the store stalls. */
  readonly #cancel = (): void => {
    this.#reader.cancel().catch(() => {})
  }
}

/** Reads through a buffer of ours, where the stream can fill one; the response bodies of Chromium cannot. */
function bufferedReader(body: ByteStream): ChunkReader | undefined {
  let reader: BufferReader
  try {
    reader = body.getReader({ mode: 'byob' })
  } catch {
    return undefined
  }
  // Lent to the stream during a read, ours again after it; lost to it only if it is cancelled meanwhile.
  let buffer = spare.pop() ?? new ArrayBuffer(BUFFER_BYTES)
  return {
    async read() {
      const { done, value } = await reader.read(new Uint8Array(buffer))
      if (value) buffer = value.buffer
      if (value && done) spare.push(buffer)
      return { done, value }
    },
    cancel: () => reader.cancel(),
  }
}
