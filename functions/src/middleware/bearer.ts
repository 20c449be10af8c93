/**
 * @module
 * The API key: `Authorization: Bearer <key>`. Both keys are compared through their SHA-256, all characters every time, so
 * that the time taken tells nothing about how much of a guess was right.
 */
import { createMiddleware } from 'hono/factory'
import { timingSafeEqual } from 'hono/utils/buffer'
import { ApiError } from './errors.ts'

export function bearer(key: string) {
  return createMiddleware(async function bearer(c, next) {
    const given = /^Bearer +(.+)$/i.exec(c.req.header('Authorization') ?? '')?.[1]
    if (given === undefined || !(await timingSafeEqual(key, given))) {
      const message =
        given === undefined
          ? 'this server asks for an API key: send the header "Authorization: Bearer <key>"'
          : 'the API key is not the one that this server expects'
      throw new ApiError('invalid_api_key', message, { headers: { 'WWW-Authenticate': 'Bearer' } })
    }
    await next()
  })
}
