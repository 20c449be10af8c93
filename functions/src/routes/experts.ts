/**
 * @module
 * `GET /v1/experts`: which experts of a model are in memory, and how often each is used; nothing is loaded for it.
 * `POST /v1/experts/prewarm`: fetches experts before they are asked for, and the model where it is not there yet.
 */
import { sharesOf } from '@sparsedge/engine/model/selection'
import type { Context } from 'hono'
import { z } from 'zod'
import { readBody } from '../schema.ts'
import type { Service } from '../service.ts'

export function experts(service: Service): (c: Context) => Promise<Response> {
  return async (c) => {
    const { name, engine } = service.model(c.req.query('model'))
    const head = { object: 'experts', model: name, state: engine.state }
    if (engine.state !== 'ready') return c.json({ ...head, shares: [], capacity: 0, resident: 0, layers: [] })
    const ready = await engine.get()
    const held = ready.experts()
    const row = (values: Iterable<number>, layer: number) =>
      Array.from(values).slice(layer * held.experts, (layer + 1) * held.experts)
    return c.json({
      ...head,
      shares: sharesOf(ready.manifest.config.gate).map(([share]) => share),
      expert_bytes: held.expertBytes,
      capacity: held.capacity,
      resident: held.resident,
      layers: Array.from({ length: held.layers }, (_, layer) => ({
        resident: row(held.isResident, layer),
        frequency: row(held.frequency, layer).map((rate) => Number(rate.toFixed(3))),
      })),
    })
  }
}

const PrewarmBody = z.object({
  model: z.string().nullish(),
  max_bytes: z.int().min(0).nullish(),
  max_fetches: z.int().min(0).nullish(),
})

export function prewarm(service: Service): (c: Context) => Promise<Response> {
  return async (c) => {
    const { model, max_bytes, max_fetches } = await readBody(c, PrewarmBody)
    const { name, engine } = service.model(model)
    // The platform counts a warm-up's fetches as it does an answer's.
    const allowed = service.limits.expertFetches
    const maxFetches = Math.min(max_fetches ?? Number.POSITIVE_INFINITY, allowed ?? Number.POSITIVE_INFINITY)
    const ready = await service.keepAlive(engine.get())
    const limits = {
      ...(max_bytes != null && { maxBytes: max_bytes }),
      maxFetches,
    }
    const { loaded, bytes, requests } = await ready.prewarm(limits, c.req.raw.signal)
    const { capacity, resident } = ready.experts()
    return c.json({ object: 'experts.prewarm', model: name, loaded, bytes, requests, capacity, resident })
  }
}
