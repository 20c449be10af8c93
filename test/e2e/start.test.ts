/**
 * @module
 * `npm start` as a visitor types it, to its end.
 */
import { expect, test } from 'vitest'
import { descendants, freePort, type Process, start, stillRunning } from '../processes.ts'
import { clientOf, QUESTION } from './client.ts'

test('it says where it is, answers, and leaves nothing behind', async () => {
  const port = await freePort()
  const program = start('npm', ['start'], { PORT: String(port) })
  let started: Process[] = []
  try {
    const [, url] = await program.until(/(http:\/\/localhost:\d+)/, 120)
    expect(url).toBe(`http://localhost:${port}`)
    started = await descendants(program.child.pid ?? 0)
    expect(started.map(({ command }) => command).join('\n')).toContain('workerd')
    const answer = await clientOf({ url }).chat.completions.create(QUESTION)
    expect(answer.choices[0].message.content).toContain('Paris')

    await program.stop()
    await expect.poll(() => stillRunning(started), { timeout: 10_000 }).toEqual([])
    await expect(fetch(url)).rejects.toThrow()
  } finally {
    await program.stop()
    for (const { pid } of await stillRunning(started)) process.kill(pid, 'SIGKILL')
  }
})

test.each([
  ['MODEL', 'nobody', /no model "nobody" in the local bucket, only: .*-- push PACK --to local/],
  ['MEMORY_MIB', 'lots', /MEMORY_MIB must be a whole number from 1 to 4095/],
  ['PORT', 'abc', /PORT=abc is no port: it must be a whole number from 1 to 65535/],
])('it does not start with %s=%s, and says what to do', async (name, value, words) => {
  const program = start('npm', ['start'], { PORT: String(await freePort()), [name]: value })
  await program.until(words, 120)
  expect(await program.exit).toBe(1)
  expect(program.output()).not.toContain('Ready')
})

test.each([
  ['test', /npm test -- --only unit,cross/],
  ['bench', /--rounds N/],
  ['bench:gpu', /--smallest/],
  ['bench:residency', /--only PARTS/],
])('npm run %s says what it takes', async (script, words) => {
  const program = start('npm', ['run', script, '--', '--help'])
  await program.until(words, 60)
  expect(await program.exit).toBe(0)
})
