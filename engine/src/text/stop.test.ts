import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { StopMatcher } from './stop.ts'

interface Outcome {
  readonly pieces: string[]
  readonly stopped: boolean
}

function run(stops: readonly string[], pieces: readonly string[]): Outcome {
  const matcher = new StopMatcher(stops)
  const emitted: string[] = []
  for (const piece of pieces) {
    const { text, stopped } = matcher.push(piece)
    emitted.push(text)
    if (stopped) return { pieces: emitted, stopped }
  }
  return { pieces: [...emitted, matcher.end()], stopped: false }
}

/** Looks at the whole text, one end after the other. */
function oracle(stops: readonly string[], text: string): { text: string; stopped: boolean } {
  for (let end = 1; end <= text.length; end++) {
    const found = stops
      .filter((stop) => text.slice(0, end).endsWith(stop))
      .sort((a, b) => b.length - a.length)
    if (found.length > 0) return { text: text.slice(0, end - found[0].length), stopped: true }
  }
  return { text, stopped: false }
}

/** Few letters, so that stop strings overlap themselves and each other; one of them is a surrogate pair. */
const letters = fc.constantFrom('a', 'b', '😀', '😁')
const stopStrings = fc.array(fc.string({ unit: letters, minLength: 1, maxLength: 5 }), { maxLength: 4 })
const streams = fc.array(fc.string({ unit: letters, maxLength: 4 }), { maxLength: 12 })

describe('StopMatcher', () => {
  it('ends where a look at the whole text would end, however it is cut', () => {
    fc.assert(
      fc.property(stopStrings, streams, (stops, pieces) => {
        const { pieces: emitted, stopped } = run(stops, pieces)
        expect({ text: emitted.join(''), stopped }).toEqual(oracle(stops, pieces.join('')))
      }),
      { numRuns: 3000 },
    )
  })

  it('emits all that no stop string can begin with any more, and nothing else', () => {
    fc.assert(
      fc.property(stopStrings, streams, (stops, pieces) => {
        const matcher = new StopMatcher(stops)
        let seen = ''
        let emitted = ''
        for (const piece of pieces) {
          const { text, stopped } = matcher.push(piece)
          emitted += text
          if (stopped) return
          seen += piece
          const held = seen.slice(emitted.length)
          expect(held === '' || stops.some((stop) => stop.startsWith(held))).toBe(true)
          expect(emitted.isWellFormed()).toBe(true)
          for (let start = 0; start < emitted.length; start++) {
            expect(stops.some((stop) => stop.startsWith(seen.slice(start)))).toBe(false)
          }
        }
      }),
      { numRuns: 1000 },
    )
  })

  it.each([
    ['nothing to stop at', [], ['a', 'b'], ['a', 'b', ''], false],
    ['across pieces', ['</s>'], ['x<', '/', 's', '>y'], ['x', '', '', ''], true],
    ['a beginning that comes to nothing', ['</s>'], ['x<', '/', 'b'], ['x', '', '</b', ''], false],
    ['the text ends within a beginning', ['</s>'], ['x</s'], ['x', '</s'], false],
    ['one inside another: the one complete first', ['abcd', 'bc'], ['abcd'], ['a'], true],
    ['two complete at once: the longer one', ['bc', 'abc'], ['xabc'], ['x'], true],
    ['a beginning within a beginning', ['aab'], ['aa', 'a', 'b'], ['', 'a', ''], true],
    ['at the very start', ['a'], ['ab'], [''], true],
  ] as const)('%s', (_, stops, pieces, expected, stopped) => {
    expect(run(stops, pieces)).toEqual({ pieces: expected, stopped })
  })

  it('never cuts a character in two', () => {
    expect(run(['\ude00'], ['a😀b'])).toEqual({ pieces: ['a😀b', ''], stopped: false })
    expect(run(['\ud83d'], ['a😀b'])).toEqual({ pieces: ['a😀b', ''], stopped: false })
    expect(run(['\ude00'], ['a\ufffdb'])).toEqual({ pieces: ['a'], stopped: true })
  })

  it('refuses an empty stop string', () => {
    expect(() => new StopMatcher(['a', ''])).toThrow(expect.objectContaining({ code: 'invalid_request' }))
  })

  it('takes a long stop string and a text that almost matches it', () => {
    const stop = `${'a'.repeat(20_000)}b`
    expect(run([stop], Array(40).fill('a'.repeat(10_000))).pieces.join('')).toHaveLength(400_000)
  })
})
