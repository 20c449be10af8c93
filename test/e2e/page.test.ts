/**
 * @module
 * The chat page in a real browser, against the real Worker.
 */
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import type { Browser } from 'playwright-core'
import { afterAll, beforeAll, expect, inject, test } from 'vitest'
import { z } from 'zod'
import { launchChromium } from '../chromium.ts'
import { ROOT } from '../processes.ts'
import { type Server, startWorker } from '../servers.ts'

/** Runs in the page: collects each text of an answer that is under way. */
const WATCH = `(() => {
  const seen = []
  const look = () => {
    const text = document.querySelector('article.assistant[aria-busy=true] .text')?.textContent
    if (text && text !== seen.at(-1)) seen.push(text)
  }
  new MutationObserver(look).observe(document.body, { subtree: true, childList: true })
  return seen
})()`

let server: Server
let browser: Browser
beforeAll(async () => {
  server = await startWorker({ state: inject('state') })
  browser = await launchChromium()
})
afterAll(async () => {
  await browser.close()
  await server.stop()
})

test('a message gets an answer that streams in, with what it cost', async () => {
  const page = await browser.newPage({ viewport: { width: 800, height: 600 } })
  const problems: string[] = []
  page.on('pageerror', (error) => problems.push(error.message))
  page.on('console', (message) => {
    if (message.type() === 'error') problems.push(message.text())
  })
  await page.goto(server.url)
  await page.getByLabel('Temperature').fill('0')
  await page.getByLabel('Max tokens').fill('60')
  // Every state of the answer's text that the page shows while it is being written.
  const states = await page.evaluateHandle(WATCH)
  await page.getByLabel('Message', { exact: true }).fill('What is the capital of France?')
  await page.keyboard.press('Enter')
  const answer = page.locator('article.assistant')
  await answer.locator('.cost').waitFor()

  const whole = (await answer.locator('.text').textContent()) ?? ''
  const seen = z.array(z.string()).parse(await states.jsonValue())
  expect(seen.length).toBeGreaterThan(5)
  for (const early of seen) expect(whole.startsWith(early)).toBe(true)
  expect(whole).toContain('Paris')
  expect(await answer.locator('.cost').textContent()).toMatch(/experts: \d+ % active/)
  expect(problems).toEqual([])

  const folder = join(ROOT, 'test', 'e2e', 'dist')
  await mkdir(folder, { recursive: true })
  await page.screenshot({ path: join(folder, 'chat-page.png') })
})
