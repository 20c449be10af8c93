import { expect, it } from 'vitest'
import { printable } from './format.ts'

it.each([
  ['plain', 'SmolLM2, Apache-2.0 · 日本語 🙂', 'SmolLM2, Apache-2.0 · 日本語 🙂'],
  ['lines stay', 'one\ntwo', 'one\ntwo'],
  ['a colour', '\u001b[31mred', '\ufffd[31mred'],
  ['a title', '\u001b]0;owned\u0007', '\ufffd]0;owned\ufffd'],
  ['one byte that starts a sequence', '\u009b2J', '\ufffd2J'],
  ['a line that writes over itself', 'wrong\rright', 'wrong\ufffdright'],
  ['letters that run backwards', 'a\u202egnp.exe', 'a\ufffdgnp.exe'],
  ['other line ends', 'a\u2028b', 'a\ufffdb'],
])('%s', (_, text, shown) => {
  expect(printable(text)).toBe(shown)
})
