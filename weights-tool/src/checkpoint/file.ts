/**
 * @module
 * Random reads from a large file on disk.
 */
import { type FileHandle, open } from 'node:fs/promises'
import { malformed } from './checkpoint.ts'

export interface LargeFile {
  readonly path: string
  /** Bytes. */
  readonly size: number
  /** @throws SparsedgeError `checkpoint_malformed` if the file ends before `start + length` */
  read(start: number, length: number): Promise<Uint8Array<ArrayBuffer>>
  close(): Promise<void>
}

/** One read call takes at most this much. */
const CHUNK = 1 << 30

/** @throws SparsedgeError `checkpoint_malformed` if there is no such file or it cannot be read */
export async function openLargeFile(path: string): Promise<LargeFile> {
  let handle: FileHandle
  try {
    handle = await open(path)
  } catch (cause) {
    throw malformed(`cannot open ${path}; is the path right?`, cause)
  }
  const { size } = await handle.stat()
  return {
    path,
    size,
    async read(start, length) {
      // Before the allocation: a header may claim any length.
      if (start + length > size) throw malformed(`${path} ends too early: it was cut off while it was copied`)
      const bytes = new Uint8Array(length)
      for (let done = 0; done < length; ) {
        const { bytesRead } = await handle.read(bytes, done, Math.min(CHUNK, length - done), start + done)
        if (bytesRead === 0) throw malformed(`${path} became shorter while it was read`)
        done += bytesRead
      }
      return bytes
    },
    close: () => handle.close(),
  }
}
