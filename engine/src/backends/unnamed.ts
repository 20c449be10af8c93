/**
 * @module
 * In place of named.ts where a runtime compiles no WebAssembly from bytes and has no GPU: Cloudflare Workers. There the
 * kernels are imported as modules, and a bundle holds nothing that it cannot use.
 */
import { SparsedgeError } from '../errors.ts'
import type { BackendFactory } from './backend.ts'

/** @throws SparsedgeError `backend_unavailable` */
export function namedBackend(name: string): BackendFactory {
  const message = `there is no backend "${name}" by name in a Worker; pass wasmBackend({ modules })`
  throw new SparsedgeError('backend_unavailable', message)
}
