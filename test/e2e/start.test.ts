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
