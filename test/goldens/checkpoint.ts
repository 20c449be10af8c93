/**
 * Writes checkpoint.golden.json from the golden.json that came with the shipped model's checkpoint: what an independent
 * decoder found on the exact weights. Routed experts become bit masks, expert 0 the lowest bit.
 *
 *     node test/goldens/checkpoint.ts <checkpoint>/golden.json
 */
import { readFile, writeFile } from 'node:fs/promises'
import { z } from 'zod'

const Theirs = z.object({
  cases: z.array(
    z.object({
      ids: z.array(z.int()),
      top20_ids_last: z.array(z.int()),
      top20_logits_last: z.array(z.number()),
      argmax_every_position: z.array(z.int()),
      /** [layers][positions][experts that are on] */
      routed: z.array(z.array(z.array(z.int().max(30)))),
    }),
  ),
})

const { cases } = Theirs.parse(JSON.parse(await readFile(process.argv[2], 'utf8')))
const lines = cases.map((it) =>
  JSON.stringify({
    ids: it.ids,
    top: it.top20_ids_last.map((id, i) => [id, it.top20_logits_last[i]]),
    likeliest: it.argmax_every_position,
    routed: it.routed.map((layer) => layer.map((on) => on.reduce((mask, expert) => mask | (1 << expert), 0))),
  }),
)
await writeFile(new URL('checkpoint.golden.json', import.meta.url), `[\n${lines.join(',\n')}\n]\n`)
