/**
 * @module
 * The HTTP application: OpenAI's endpoints, a health check and a chat page over an engine. It knows no platform; the
 * entries hand it what it serves.
 */
import { Hono } from 'hono'
import { cors } from 'hono/cors'
import { requestId } from 'hono/request-id'
import { bearer } from './middleware/bearer.ts'
import { limitBody } from './middleware/body.ts'
import { onError, only, onNotFound } from './middleware/errors.ts'
import { chatCompletions } from './routes/chat-completions.ts'
import { completions } from './routes/completions.ts'
import { experts, prewarm } from './routes/experts.ts'
import { health } from './routes/health.ts'
import { listModels, retrieveModel } from './routes/models.ts'
import { page } from './routes/page.ts'
import { Service, type ServiceOptions } from './service.ts'

export interface AppOptions extends ServiceOptions {
  /** The chat page's HTML; `%NONCE%` in it becomes the nonce of its Content-Security-Policy. */
  readonly page: string
  /** Asked for on everything under `/v1`; absent: no key is needed. */
  readonly apiKey?: string | undefined
  /** Origins whose pages may call this server from a browser; `*` for all. */
  readonly allowedOrigins?: readonly string[]
}

/**
 * @example
 * const app = createApp({
 *   models: { tiny: () => createEngine({ store, model: 'tiny', backend: referenceBackend() }) },
 *   page: '<!doctype html>…',
 * })
 * const response = await app.request('/v1/models')
 */
export function createApp({ page: html, apiKey, allowedOrigins = [], ...options }: AppOptions): Hono {
  const service = new Service(options)
  const app = new Hono()
  app.onError(onError)
  app.notFound(onNotFound)
  app.use(requestId())

  app.get('/', ...page(html)).all(only('GET'))
  app.get('/health', health(service, apiKey !== undefined)).all(only('GET'))

  app.use(
    '/v1/*',
    cors({
      origin: allowedOrigins.includes('*') ? '*' : [...allowedOrigins],
      allowMethods: ['GET', 'POST'],
      allowHeaders: ['Authorization', 'Content-Type', 'X-Request-Id'],
      exposeHeaders: ['X-Request-Id', 'Retry-After', 'Server-Timing'],
      maxAge: 86_400,
    }),
  )
  if (apiKey !== undefined) app.use('/v1/*', bearer(apiKey))
  app.use('/v1/*', limitBody(service.limits.bodyBytes))
  app.post('/v1/chat/completions', chatCompletions(service)).all(only('POST'))
  app.post('/v1/completions', completions(service)).all(only('POST'))
  app.get('/v1/experts', experts(service)).all(only('GET'))
  app.post('/v1/experts/prewarm', prewarm(service)).all(only('POST'))
  app.get('/v1/models', listModels(service)).all(only('GET'))
  app.get('/v1/models/:model', retrieveModel(service)).all(only('GET'))
  return app
}
