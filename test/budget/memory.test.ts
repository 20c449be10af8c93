/**
 * @module
 * A long chat in the memory of one isolate. Deployed, an isolate has 128 MB for its JavaScript heap and WebAssembly
 * together; a local workerd enforces nothing, so V8 is told to refuse any WebAssembly memory above its share, and the
 * inspector counts everything.
 */
import { afterAll, beforeAll, expect, inject, test } from 'vitest'
import { clientOf, NEVER_ENDS, QUESTION, usageOf } from '../e2e/client.ts'
import { freePort } from '../processes.ts'
import { type Server, startWorker } from '../servers.ts'
import { openShipped } from '../shipped.ts'
import { type Inspector, inspect } from './inspector.ts'

const MIB = 2 ** 20
const WASM_PAGES = 96 * 16
const TOTAL_BYTES = 120 * MIB
const CHAT_TOKENS = 1000
/** About 400 tokens, so that the chat has a long prompt and a long answer. */
const STORY = 'The lighthouse keeper counted the ships that passed and wrote each name into a book. '.repeat(
  20,
)
const CHAT = {
  ...QUESTION,
  messages: [{ role: 'user' as const, content: `${STORY}What did the keeper do?` }],
  logit_bias: NEVER_ENDS,
}

let server: Server
let inspector: Inspector
beforeAll(async () => {
  const inspectorPort = await freePort()
  const v8Flags = `--wasm-max-mem-pages=${WASM_PAGES}`
  server = await startWorker({ state: inject('state'), v8Flags, inspectorPort })
  inspector = await inspect(inspectorPort)
})
afterAll(async () => {
  inspector.close()
  await server.stop()
})

test(`a chat of ${CHAT_TOKENS} tokens fits`, async () => {
  const client = clientOf(server)
  const peaks: number[] = []
  let loaded = false
  const loading = client.chat.completions.create({ ...CHAT, max_tokens: 1 }).finally(() => {
    loaded = true
  })
  // What comes from the bucket goes into the cache meanwhile.
  while (!loaded) peaks.push(await total('while the model loads, before'))
  const first = await loading
  const fetched = Object.values(usageOf(first).experts.tiers).reduce((sum, { bytes }) => sum + bytes, 0)
  const { trunk } = (await openShipped()).manifest
  const trunkBytes = trunk.shards.reduce((sum, { bytes }) => sum + bytes, 0)
  console.log(`first answer: ${mib(trunkBytes)} of trunk and ${mib(fetched)} of experts fetched`)

  const max_tokens = CHAT_TOKENS - usageOf(first).prompt_tokens
  const stream = await client.chat.completions.create({
    ...CHAT,
    max_tokens,
    stream: true,
    stream_options: { include_usage: true },
  })
  let pieces = 0
  let usage: ReturnType<typeof usageOf> | undefined
  for await (const chunk of stream) {
    if (++pieces % 150 === 0) peaks.push(await total('during'))
    if (chunk.usage) usage = usageOf(chunk)
  }
  peaks.push(await total('after'))
  expect(usage?.completion_tokens).toBe(max_tokens)
  expect(peaks.length).toBeGreaterThan(3)
  expect(Math.max(...peaks)).toBeLessThan(TOTAL_BYTES)
})

/** Bytes that the isolate holds now. */
async function total(when: string): Promise<number> {
  const { total, buffers } = await inspector.memory()
  console.log(`${when} the chat: ${mib(total)}, of which the largest buffer ${mib(buffers[0])}`)
  expect(buffers[0]).toBeLessThanOrEqual(WASM_PAGES * 65536)
  return total
}

test('the limit on WebAssembly memory is real: half of it is refused', async () => {
  const small = await startWorker({
    state: inject('state'),
    v8Flags: `--wasm-max-mem-pages=${WASM_PAGES / 2}`,
  })
  try {
    await expect(clientOf(small).chat.completions.create(QUESTION)).rejects.toMatchObject({
      status: 500,
      code: 'memory_exhausted',
    })
  } finally {
    await small.stop()
  }
})

const mib = (bytes: number): string => `${(bytes / MIB).toFixed(1)} MiB`
