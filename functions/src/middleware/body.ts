/**
 * @module
 * Bodies: none is longer than the limit, and one that does not arrive whole is the end of its request, not a failure of
 * the server.
 */
import type { Context } from 'hono'
import { bodyLimit } from 'hono/body-limit'
import { createMiddleware } from 'hono/factory'
import { ApiError } from './errors.ts'

/** Refuses a longer body by its stated length, or as soon as that many bytes of it were read. */
export function limitBody(bytes: number) {
  const limited = bodyLimit({ maxSize: bytes, onError: (c) => tooLarge(c, bytes) })
  return createMiddleware(async function limitBody(c, next) {
    try {
      return await limited(c, next)
    } catch (error) {
      throw error instanceof ApiError ? error : brokenOff(error)
    }
  })
}

/** @throws ApiError `cancelled` if the client breaks off */
export async function bodyText(c: Context): Promise<string> {
  return await c.req.text().catch((cause: unknown) => {
    throw brokenOff(cause)
  })
}

function tooLarge(c: Context, bytes: number): never {
  // What was announced and not read stands on the connection where the next request would. A body without a length may have
  // no end: its connection is left to the server, which reads on for a moment, so that its client hears of this.
  const headers = c.req.header('Content-Length') === undefined ? {} : { Connection: 'close' }
  throw new ApiError('body_too_large', `a request's body may have up to ${bytes} bytes`, { headers })
}

function brokenOff(cause: unknown): ApiError {
  return new ApiError('cancelled', 'the client broke off amid the body of its request', { cause })
}
