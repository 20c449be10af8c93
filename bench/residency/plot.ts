/**
 * @module
 * Hit rate against the size of the arena, policy by policy, as a picture.
 */
import { plot as draw, line, ruleX, text } from '@observablehq/plot'
import { JSDOM } from 'jsdom'
import { CURVES } from './measure.ts'
import { overall, type Report } from './report.ts'

/** @returns an SVG document */
export function plot({ curves, all, workingSet, date }: Report): string {
  const { document } = new JSDOM('').window
  const drawn = curves.filter(({ policy }) => CURVES.some((name) => name === policy))
  const points = overall(drawn).map(({ policy, slots, rate }) => ({ policy, share: slots / all, rate }))
  const label = points.filter(({ share }) => Math.abs(share - 0.5) < 0.01)
  const svg = draw({
    document,
    width: 720,
    height: 420,
    marginLeft: 56,
    marginBottom: 48,
    style: { background: 'white', color: '#222', fontSize: '12px' },
    x: { label: `arena, share of all experts (${date})`, percent: true, grid: true },
    y: { label: 'hits of decoded tokens, %', percent: true, grid: true },
    color: { domain: ['optimum', 'ours', 'LFU', 'LRU'], range: ['#b9b9b9', '#2f6f9f', '#c98a2b', '#a34a4a'] },
    marks: [
      ruleX([(100 * workingSet) / all], { strokeDasharray: '4 3' }),
      text([{ share: workingSet / all }], {
        x: 'share',
        text: () => "a token's working set",
        frameAnchor: 'bottom',
        textAnchor: 'start',
        dx: 4,
        dy: -6,
      }),
      line(points, { x: 'share', y: 'rate', stroke: 'policy', strokeWidth: 2, marker: 'dot' }),
      text(label, {
        x: 'share',
        y: 'rate',
        text: 'policy',
        fill: 'policy',
        textAnchor: 'end',
        dx: -8,
        dy: -8,
      }),
    ],
  })
  svg.setAttribute('xmlns', 'http://www.w3.org/2000/svg')
  return `${svg.outerHTML}\n`
}
