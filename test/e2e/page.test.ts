/**
 * @module
 * The chat page in a real browser, against the real Worker.
 */
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import type { Browser, Page } from 'playwright-core'
import { afterAll, beforeAll, expect, inject, test } from 'vitest'
import { z } from 'zod'
import { launchChromium } from '../chromium.ts'
import { ROOT } from '../processes.ts'
import { type Server, startWorker } from '../servers.ts'
import { MODEL } from '../shipped.ts'

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

/** The beginning of a stream, as a proxy that gives up leaves it. */
const CHUNK = 'data: {"choices":[{"index":0,"delta":{"content":"Once"}}]}\n\n'

const QUESTION = 'Tell me a long story about the sea.'

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
  await page.getByText('Experts in memory').click()
  await page.getByText(/^\d{3,4} of 1200 experts, room for 1200/).waitFor()
  const painted = `document.querySelector('canvas').getContext('2d').getImageData(0, 0, 30, 40).data.some((v) => v > 0)`
  expect(await page.evaluate(painted)).toBe(true)
  expect(problems).toEqual([])

  const folder = join(ROOT, 'test', 'e2e', 'dist')
  await mkdir(folder, { recursive: true })
  await page.screenshot({ path: join(folder, 'chat-page.png') })
})

/** Opens the page and asks something that has a long answer. */
async function ask(page: Page): Promise<void> {
  await page.getByLabel('Temperature').fill('0')
  await page.getByLabel('Message', { exact: true }).fill(QUESTION)
  await page.keyboard.press('Enter')
}

test('a health check that fails is told; the page works on as soon as the server does', async () => {
  const page = await browser.newPage()
  await page.route('**/health', (route) => route.abort('connectionrefused'), { times: 1 })
  await page.goto(server.url)
  const model = page.locator('#model')
  await expect.poll(() => model.textContent()).toContain('The server does not answer')
  await ask(page)
  await page.locator('article.assistant .cost').waitFor()
  expect(await model.textContent()).toBe(MODEL)
  await page.close()
})

test('a share of the experts can be asked for; one that the model does not serve is refused with those that it does', async () => {
  const page = await browser.newPage()
  await page.goto(server.url)
  const answer = page.locator('article.assistant')
  await page.getByLabel('Max tokens').fill('8')
  await page.getByLabel('Share of experts').fill('1')
  await ask(page)
  expect(await answer.locator('.cost').textContent()).toContain('experts: 100 % active')
  const offered = page.locator('#shares option')
  await expect.poll(() => offered.allTextContents()).toEqual(['0.35', '0.5', '0.7', '1'])
  await page.getByLabel('Share of experts').fill('0.4')
  await ask(page)
  expect(await answer.nth(1).locator('.error').textContent()).toContain('0.35, 0.5, 0.7, 1')
  await page.close()
})

test('an answer that is stopped is marked so, and the chat goes on', async () => {
  const page = await browser.newPage()
  await page.goto(server.url)
  await ask(page)
  const first = page.locator('article.assistant').first()
  await expect.poll(() => first.locator('.text').textContent()).not.toBe('')
  await page.getByRole('button', { name: 'Stop' }).click()
  expect(await first.locator('.error').textContent()).toBe('Stopped by you; the answer goes no further.')
  expect(await first.getAttribute('class')).toContain('broken')
  await ask(page)
  await page.locator('article.assistant').nth(1).locator('.cost').waitFor()
  await page.close()
})

test('a key that is missing is asked for where it can be given', async () => {
  const page = await browser.newPage()
  await page.route('**/v1/**', (route) => route.fulfill({ status: 401, body: '{}' }))
  await page.route('**/health', (route) =>
    route.fulfill({ json: { key_needed: true, models: { a: 'cold' } } }),
  )
  await page.goto(server.url)
  await page.getByLabel('API key').waitFor()
  await ask(page)
  expect(await page.locator('article.assistant .error').textContent()).toContain('the field for it is below')
  await page.close()
})

test.each([
  {
    what: 'that ends before it is whole',
    status: 200,
    body: CHUNK,
    says: 'The answer broke off: the connection',
    left: '',
  },
  {
    what: 'that never begins',
    status: 502,
    body: '<html>Bad gateway</html>',
    says: 'No answer: status 502',
    left: QUESTION,
  },
])(
  'an answer $what is marked so, and a message without one can be sent again',
  async ({ status, body, says, left }) => {
    const page = await browser.newPage()
    await page.route('**/v1/chat/completions', (route) => route.fulfill({ status, body }))
    await page.goto(server.url)
    await ask(page)
    const error = page.locator('article.assistant.broken .error')
    await error.waitFor()
    expect(await error.textContent()).toContain(says)
    expect(await page.getByLabel('Message', { exact: true }).inputValue()).toBe(left)
    await page.close()
  },
)
