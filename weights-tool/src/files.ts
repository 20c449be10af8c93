/**
 * @module
 * Failures of the machine itself, in words: what the file system or the allocator says becomes a SparsedgeError that tells
 * what to do next.
 */
import { type ErrorCode, SparsedgeError } from '@sparsedge/engine/errors'

const IN_THE_WAY = 'a file stands where a directory is needed; choose another path'
const FORBIDDEN = 'this user may not; change its permissions, or choose another path'

const REASONS: ReadonlyMap<unknown, string> = new Map([
  ['ENOENT', 'it is not there; is the path right?'],
  ['EISDIR', 'it is a directory, not a file; choose another path'],
  ['ENOTDIR', IN_THE_WAY],
  ['EEXIST', IN_THE_WAY],
  ['EACCES', FORBIDDEN],
  ['EPERM', FORBIDDEN],
  ['EROFS', 'the file system is read-only; choose another path'],
  ['ENOSPC', 'the disk is full; make room and try again'],
  ['EDQUOT', 'your share of the disk is used up; make room and try again'],
  ['EMFILE', 'too many files are open; raise the limit (`ulimit -n`) and try again'],
  ['ERR_FS_FILE_TOO_LARGE', 'it is larger than any file of its kind; is the path right?'],
])

/** The `code` of what Node's file system throws. */
export function codeOf(cause: unknown): unknown {
  return cause instanceof Error && 'code' in cause ? cause.code : undefined
}

/**
 * For `.catch` of what reads or writes files.
 *
 * @param deed such as `read config.json`
 * @throws SparsedgeError `code`, by default `store_unavailable`; what is a SparsedgeError already stays what it is
 */
export function cannot(deed: string, code: ErrorCode = 'store_unavailable'): (cause: unknown) => never {
  return (cause) => {
    if (cause instanceof SparsedgeError) throw cause
    const reason = REASONS.get(codeOf(cause)) ?? (cause instanceof Error ? cause.message : String(cause))
    throw new SparsedgeError(code, `cannot ${deed}: ${reason}`, {}, { cause })
  }
}

/** @throws SparsedgeError `memory_exhausted` where so many bytes cannot be had, whatever a header says */
export function allocate(bytes: number, content: string): Uint8Array<ArrayBuffer> {
  try {
    return new Uint8Array(bytes)
  } catch (cause) {
    throw outOfMemory(`${content} takes ${bytes} bytes at once`, cause)
  }
}

/** What the allocator throws becomes `memory_exhausted`; anything else stays as it is. */
export function inWords(error: unknown): unknown {
  const allocation = error instanceof RangeError && ALLOCATION.test(error.message)
  return allocation ? outOfMemory(error.message, error) : error
}

/** V8's words. */
const ALLOCATION = /allocation failed|invalid (typed )?array (buffer )?length|invalid string length/i

function outOfMemory(what: string, cause: unknown): SparsedgeError {
  const message = `${what}, more than this process can have; if that is no mistake in the file, use a machine with more memory`
  return new SparsedgeError('memory_exhausted', message, {}, { cause })
}
