/**
 * The WebGPU backend beside the WASM backend in real runtimes, on whatever adapter they find: a software one will do.
 */

import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { directoryTarget } from '@sparsedge/weights-tool/push/directory'
import { push } from '@sparsedge/weights-tool/push/push'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { z } from 'zod'
import { launchChromium } from '../../chromium.ts'
import { GATES, type TinyPackOptions, tinyPack } from '../../fixtures/tiny.ts'
import { BIN } from '../../processes.ts'
import { startEntry } from '../../servers.ts'
import { ONNXRUNTIME, servePage } from '../browser/serve.ts'
import { bundle, DIST, HERE, print } from '../runners.ts'
import { serveFolders } from '../server.ts'
import type { GpuResult } from './probe.ts'

/** Between them they have gates of both sources and every kind, shares from a quarter to one, and every layout. */
const PACKS: readonly TinyPackOptions[] = [
  { name: 'gpu-look-ahead', layers: 2, gate: GATES.clampedLookAhead, layouts: { fineRows: 96 } },
  {
    name: 'gpu-two-of-four',
    layers: 2,
    gate: GATES.softmaxTopK,
    sharedUnits: 32,
    tiedHead: false,
    layouts: { fineRows: 96 },
  },
  {
    name: 'gpu-one-of-four',
    layers: 2,
    gate: { ...GATES.renormalisedTopK, selection: { by: 'top_k', k: 1 } },
    layouts: { embedding: 'q4' },
  },
  {
    name: 'gpu-threshold',
    layers: 2,
    gate: GATES.softmaxThreshold,
    layouts: { attention: 'q8', experts: 'q8' },
  },
]
/** Half a minute on a machine that does nothing else. */
const PATIENCE_MS = 600_000
const MODELS = PACKS.map(({ name = '' }) => name)

/** Packs, kernels and onnxruntime under one address. */
const runtimes: { name: string; run: (folders: readonly string[]) => Promise<GpuResult> }[] = [
  { name: 'Deno', run: deno },
  { name: 'Chromium', run: chromium },
]

const Completion = z.object({ choices: z.array(z.object({ text: z.string() })) })

let directory: string
beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'sparsedge-gpu-'))
  for (const options of PACKS) {
    const { manifest, store } = await tinyPack(options)
    await push({ path: '', manifest, store }, directoryTarget(directory))
  }
})
afterAll(() => rm(directory, { recursive: true, force: true }))

describe.each(runtimes)('$name', ({ run }) => {
  let result: GpuResult
  beforeAll(async () => {
    result = await run([directory, DIST, ONNXRUNTIME])
    console.log(JSON.stringify(result, null, 1))
  }, PATIENCE_MS)

  test('forced decoding agrees with the reference, and with WASM as far as the reference does', () => {
    expect(result.forced.map(({ model }) => model)).toEqual(MODELS)
    expect(sum(result.forced.map(({ tokens }) => tokens))).toBeGreaterThanOrEqual(512)
    for (const { reference, wasm, between } of result.forced) {
      expect(reference.top1).toBeGreaterThanOrEqual(0.99)
      expect(reference.kl).toBeLessThan(1e-6)
      expect(Math.abs(reference.share)).toBeLessThan(1e-3)
      // What separates the two is WASM's int8 activations; on random weights they change one likeliest token in fifty.
      expect(Math.abs(wasm.kl - between.kl)).toBeLessThan(1e-5)
      expect(Math.abs(wasm.top1 - between.top1)).toBeLessThan(0.01)
    }
  })

  test('tokens after a prompt agree with the reference, though other kernels ran the prompt', () => {
    expect(result.prompted.map(({ model }) => model)).toEqual(MODELS)
    for (const { top1, kl, share } of result.prompted) {
      expect(top1).toBe(1)
      expect(kl).toBeLessThan(1e-6)
      expect(Math.abs(share)).toBeLessThan(1e-3)
    }
  })

  test('fetching experts when they are routed gives the bits of having them all', () => {
    for (const { misses, missesWhenResident, sameWhenResident } of result.forced) {
      expect(misses).toBeGreaterThan(0)
      expect(missesWhenResident).toBe(0)
      expect(sameWhenResident).toBe(1)
    }
  })

  test('reads back once a token, and less often where tokens are run ahead', () => {
    for (const { readbacks } of result.forced) expect(readbacks).toBeLessThanOrEqual(1)
    expect(result.ahead.readbacks).toBeLessThan(16)
    expect(result.ahead.same).toBe(true)
  })

  test('goes on with the same text when the device is lost', () => {
    const { wasm, webgpu, lost } = result.text
    expect(webgpu.backend).toBe('webgpu')
    expect(lost).toEqual({ text: webgpu.text, backend: wasm.backend })
    expect(new Set(webgpu.text).size).toBeGreaterThan(8)
  })

  test('keeps to what a request allows to be fetched', () => {
    expect(result.limits).toEqual({ exact: 'expert_fetches_spent', fidelity: 0 })
  })

  test('unpacks tiles exactly, and those that no packer writes to an eighth of a step', () => {
    expect(result.unpacked.near).toBe(0)
    expect(result.unpacked.far).toBeLessThanOrEqual(1)
  })

  test('fails with codes', () => {
    expect(result.codes).toEqual({
      sequence: 'memory_exhausted',
      tensor: 'memory_exhausted',
      lost: 'device_lost',
    })
  })
})

test(
  'Deno’s entry answers on the GPU what it answers on WASM',
  async () => {
    const answer = async (backend: string) => {
      const server = await startEntry('deno', { MODEL: MODELS[0], STORE: directory, BACKEND: backend })
      try {
        const response = await fetch(`${server.url}/v1/completions`, {
          method: 'POST',
          headers: { 'Content-Type': 'application/json' },
          body: JSON.stringify({ model: MODELS[0], prompt: 'one and two', max_tokens: 6, temperature: 0 }),
        })
        return Completion.parse(await response.json()).choices[0].text
      } finally {
        await server.stop()
      }
    }
    const [wasm, webgpu] = [await answer('wasm'), await answer('webgpu')]
    expect(webgpu).toBe(wasm)
    expect(webgpu).not.toBe('')
  },
  PATIENCE_MS,
)

test(
  'a page loads a pack over HTTP and generates on either backend',
  async () => {
    const server = await servePage(directory)
    const browser = await launchChromium({ gpu: true })
    try {
      const page = await browser.newPage()
      await page.goto(server.address)
      await page.getByLabel('Model').fill(MODELS[0])
      await page.getByLabel('Prompt').fill('one and two')
      const generate = async (backend: string, name: RegExp) => {
        await page.getByLabel('Backend').selectOption(backend)
        await page.getByRole('button').click()
        await page.getByRole('status').filter({ hasText: name }).waitFor({ timeout: PATIENCE_MS })
        return page.locator('output').textContent()
      }
      const text = await generate('wasm', /^wasm-\w+: \d+ tokens/)
      expect(text).not.toBe('')
      expect(await generate('webgpu', /^webgpu: \d+ tokens/)).toBe(text)
      await generate('auto', /^(wasm-\w+|webgpu): \d+ tokens/)
      await page.getByLabel('Model').fill('nobody')
      await generate('auto', /^unknown_model/)
    } finally {
      await browser.close()
      await server.close()
    }
  },
  PATIENCE_MS,
)

async function deno(folders: readonly string[]): Promise<GpuResult> {
  const server = await serveFolders(folders, '')
  try {
    const { host } = new URL(server.address)
    const args = [
      'run',
      '--no-prompt',
      `--allow-net=${host}`,
      '--allow-read',
      '--allow-env',
      join(HERE, 'gpu', 'deno.ts'),
    ]
    return await print<GpuResult>(join(BIN, 'deno'), [...args, server.address, JSON.stringify(MODELS)])
  } finally {
    await server.close()
  }
}

async function chromium(folders: readonly string[]): Promise<GpuResult> {
  const script = await bundle('gpu/web.ts', { platform: 'browser' })
  const server = await serveFolders(folders, script)
  const browser = await launchChromium({ gpu: true })
  try {
    const page = await browser.newPage()
    await page.goto(server.address)
    // As text: the test runner would rewrite the import of a function.
    const call = `runGpuProbe(${JSON.stringify(server.address)}, ${JSON.stringify(MODELS)}, false)`
    return await page.evaluate<GpuResult>(`import('/script.js').then((module) => module.${call})`)
  } finally {
    await browser.close()
    await server.close()
  }
}

const sum = (numbers: readonly number[]) => numbers.reduce((total, n) => total + n, 0)
