/**
 * @module
 * The speeds of all programs beside llama.cpp's, as a picture.
 */
import { barX, plot as draw, ruleX, text } from '@observablehq/plot'
import { JSDOM } from 'jsdom'
import { PROMPT } from './measure.ts'
import { GGUF } from './paths.ts'
import { type Report, shortName } from './report.ts'
import { median } from './tables.ts'

/** A bar: a program's speed as a multiple of llama.cpp's with Q4_0. */
interface Bar {
  readonly name: string
  readonly speed: 'prefill' | 'decode'
  readonly ratio: number
  readonly whose: 'ours' | 'peer'
}

/** @returns an SVG document */
export function plot({ measurements, machine, date, tokens }: Report): string {
  const { document } = new JSDOM('').window
  const rows = measurements.filter(({ model, context }) => model !== 'read' && context === PROMPT)
  const native = rows.find(({ host, model }) => host === 'llama.cpp' && model === GGUF.Q4_0)
  if (!native) throw new Error('llama.cpp was not measured')
  const bars: Bar[] = (['decode', 'prefill'] as const).flatMap((speed) =>
    rows.map(({ host, model, kernels, speeds }) => ({
      name: [host, kernels, shortName(model)].filter(Boolean).join(' · '),
      speed,
      ratio: median(speeds.map((s, round) => s[speed] / native.speeds[round][speed])),
      whose: kernels ? 'ours' : 'peer',
    })),
  )
  const order = bars.filter(({ speed }) => speed === 'decode').toSorted((a, b) => b.ratio - a.ratio)
  const svg = draw({
    document,
    width: 960,
    height: 90 + 24 * order.length,
    marginLeft: 210,
    marginRight: 40,
    marginBottom: 56,
    style: { background: 'white', color: '#222', fontSize: '12px' },
    x: { label: `times llama.cpp Q4_0, one core of ${machine.cpu}, ${date}`, labelOffset: 46, grid: true },
    y: { label: null, domain: order.map(({ name }) => name) },
    fx: { label: null, domain: ['decode', 'prefill'], tickFormat: (speed: string) => title(speed, tokens) },
    color: { domain: ['ours', 'peer'], range: ['#2f6f9f', '#b9b9b9'] },
    marks: [
      barX(bars, { x: 'ratio', y: 'name', fx: 'speed', fill: 'whose' }),
      text(bars, {
        x: 'ratio',
        y: 'name',
        fx: 'speed',
        text: ({ ratio }: Bar) => ratio.toFixed(2),
        textAnchor: 'start',
        dx: 4,
      }),
      ruleX([0]),
      ruleX([1], { strokeDasharray: '4 3' }),
    ],
  })
  svg.setAttribute('xmlns', 'http://www.w3.org/2000/svg')
  return `${svg.outerHTML}\n`
}

function title(speed: string, tokens: number): string {
  return speed === 'decode' ? `decoding ${tokens} tokens` : `reading a prompt of ${PROMPT}`
}
