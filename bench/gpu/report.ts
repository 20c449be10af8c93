/**
 * @module
 * A report of main.ts as tables and as a picture.
 */
import { barX, plot as draw, ruleX, text } from '@observablehq/plot'
import { JSDOM } from 'jsdom'
import { asMarkdown, asText, type Section, short } from '../tables.ts'
import type { GpuReport, Speed } from './main.ts'

const ORDINARY = 'onnxruntime-web, dense, the ordinary way'

export function gpuTable(report: GpuReport): string {
  return asText(sections(report))
}

export function gpuMarkdown(report: GpuReport): string {
  const { date, runtime, card, layers, prompt, tokens } = report
  const head =
    `# WebGPU beside onnxruntime-web\n\n` +
    `\`npm run bench:gpu\`, ${date}, ${card.adapter}, ${runtime}. Random weights with the shapes of SmolLM2-135M, ` +
    `${layers} layers; a prompt of ${prompt} tokens, then ${tokens} greedily.\n\n![](gpu-bench.svg)\n\n`
  return head + asMarkdown(sections(report))
}

function sections(report: GpuReport): Section[] {
  const { card, speeds, parity } = report
  const ordinary = speeds.find(({ what }) => what === ORDINARY)
  const ratio = ({ decode }: Speed) => (ordinary ? short(decode / ordinary.decode) : '')
  const rows = speeds.map((speed) => {
    const ms = 1000 / speed.decode
    // Ours binds what it has bound before.
    const start = speed === ordinary ? card.boundDispatchUs : card.dispatchUs
    return [
      speed.what,
      short(speed.prefill),
      short(speed.decode),
      ratio(speed),
      short(ms),
      short(speed.dispatches),
      short(speed.submits),
      short((speed.dispatches * start) / 1000),
      short(speed.readbacks * card.readbackMs),
      short((speed.weightBytes * speed.decode) / 1e9),
    ]
  })
  const head = [
    'what',
    'prefill tokens/s',
    'decode tokens/s',
    'times ordinary',
    'ms a token',
    'dispatches a token',
    'submits',
    'ms of dispatches, bare',
    'ms of readbacks',
    'GB/s of weights',
  ]
  return [
    {
      title: 'The card',
      rows: [
        ['what', 'measured'],
        ['one dispatch in a chain, µs', short(card.dispatchUs)],
        ['the same with a bind group of its own, µs', short(card.boundDispatchUs)],
        ['a readback, ms', short(card.readbackMs)],
        ['reading, GB/s', short(card.gigabytesPerSecond)],
      ],
    },
    { title: 'Speeds', rows: [head, ...rows] },
    {
      title: 'Forced decoding against WASM, random weights',
      rows: [
        ['tokens', 'same likeliest token', 'mean KL'],
        [String(parity.tokens), short(parity.top1), parity.kl.toExponential(1)],
      ],
    },
  ]
}

/** @returns an SVG document */
export function gpuPlot({ speeds, card, date }: GpuReport): string {
  const { document } = new JSDOM('').window
  const svg = draw({
    document,
    width: 760,
    height: 80 + 26 * speeds.length,
    marginLeft: 250,
    marginRight: 50,
    marginBottom: 44,
    style: { background: 'white', color: '#222', fontSize: '12px' },
    x: { label: `tokens a second, decoding; ${card.adapter}, ${date}`, labelOffset: 38, grid: true },
    y: { label: null, domain: speeds.map(({ what }) => what) },
    marks: [
      barX(speeds, {
        x: 'decode',
        y: 'what',
        fill: ({ what }: Speed) => (what === ORDINARY ? '#b9b9b9' : '#2f6f9f'),
      }),
      text(speeds, {
        x: 'decode',
        y: 'what',
        text: ({ decode }: Speed) => short(decode),
        textAnchor: 'start',
        dx: 4,
      }),
      ruleX([0]),
    ],
  })
  svg.setAttribute('xmlns', 'http://www.w3.org/2000/svg')
  return `${svg.outerHTML}\n`
}
