/**
 * @module
 * `GET /v1/models` and `GET /v1/models/:model`: what this server serves. Nothing is loaded for it.
 */
import type { Context } from 'hono'
import type { Service } from '../service.ts'

// OpenAI's clients expect a date; a name's pack may be published again at any time, so there is none to tell.
const describe = (id: string) => ({ id, object: 'model', created: 0, owned_by: 'sparsedge' })

export function listModels(service: Service): (c: Context) => Response {
  return (c) => c.json({ object: 'list', data: service.models.map(({ name }) => describe(name)) })
}

export function retrieveModel(service: Service): (c: Context) => Response {
  return (c) => c.json(describe(service.model(c.req.param('model')).name))
}
