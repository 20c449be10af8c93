/**
 * @module
 * Random reads from a large file on disk.
 */
import { open, stat } from 'node:fs/promises'
import { allocate, cannot } from '../files.ts'
import { malformed } from './checkpoint.ts'

export interface LargeFile {
  readonly path: string
  /** Bytes. */
  readonly size: number
  /**
   * @throws SparsedgeError `checkpoint_malformed` if the file ends before `start + length` or cannot be read,
   * `memory_exhausted`
   */
  read(start: number, length: number): Promise<Uint8Array<ArrayBuffer>>
  close(): Promise<void>
}

/** One read call takes at most this much. */
const CHUNK = 1 << 30

/** @throws SparsedgeError `checkpoint_malformed` if there is no such file or it cannot be read */
export async function openLargeFile(path: string): Promise<LargeFile> {
  const unreadable = cannot(`read ${path}`, 'checkpoint_malformed')
  const found = await stat(path).catch(unreadable)
  // Opening a pipe would wait for somebody to write into it.
  if (!found.isFile()) throw malformed(`${path} is not a file; is the path right?`)
  const handle = await open(path).catch(unreadable)
  const { size } = found
  return {
    path,
    size,
    async read(start, length) {
      // Before the allocation: a header may claim any length.
      if (start + length > size) throw malformed(`${path} ends too early: it was cut off while it was copied`)
      const bytes = allocate(length, `a part of ${path}`)
      for (let done = 0; done < length; ) {
        const { bytesRead } = await handle
          .read(bytes, done, Math.min(CHUNK, length - done), start + done)
          .catch(unreadable)
        if (bytesRead === 0) throw malformed(`${path} became shorter while it was read`)
        done += bytesRead
      }
      return bytes
    },
    close: () => handle.close(),
  }
}
