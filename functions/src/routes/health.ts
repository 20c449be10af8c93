/**
 * @module
 * `GET /health`: open to everyone, never loads anything. A cold engine is healthy: the first request warms it.
 */
import type { Context } from 'hono'
import type { Service } from '../service.ts'

export function health(service: Service, keyNeeded: boolean): (c: Context) => Response {
  return (c) => {
    const models = Object.fromEntries(service.models.map(({ name, engine }) => [name, engine.state]))
    // `key_needed` lets a chat page ask for the key only where there is one.
    return c.json({ status: 'ok', key_needed: keyNeeded, models })
  }
}
