/**
 * @module
 * `weights-tool inspect`: a pack in tables.
 */
import type { ModelConfig } from '@sparsedge/engine/model/config'
import { type Manifest, type TrunkTensor, tensorBytes, trunkBytes } from '@sparsedge/engine/pack/manifest'
import Table from 'cli-table3'
import { Command } from 'commander'
import { openPackDirectory } from '../pack-directory.ts'
import { megabytes, percent, printable } from './format.ts'

const EXAMPLES = `
Shows the model's shape and gate, what takes how many bytes, how far the 4-bit weights are from their source, and,
where the pack knows them, its measured quality and how often each layer's experts are routed.

Example:
  $ weights-tool inspect models/smollm2-135m-dsmoe`

export function inspectCommand(): Command {
  return new Command('inspect')
    .description('show what is in a pack')
    .argument('<pack>', 'pack directory')
    .addHelpText('after', EXAMPLES)
    .action(async (path: string) => {
      const { manifest } = await openPackDirectory(path)
      console.log(describePack(manifest))
    })
}

/** The whole report. */
export function describePack(manifest: Manifest): string {
  const sections: (string | undefined)[] = [
    modelTable(manifest),
    sizeTable(manifest),
    errorTable(manifest),
    qualityTable(manifest),
    profileTable(manifest),
  ]
  return sections.filter((section) => section !== undefined).join('\n\n')
}

type Row = (string | number)[]

/** @param head none: the rows have no common columns */
function table(head: string[], rows: Row[]): string {
  // The first column is words, the others are numbers.
  const colAligns = head.map((_, i) => (i === 0 ? ('left' as const) : ('right' as const)))
  const out = new Table({ head, colAligns, style: { head: [], border: [], compact: true } })
  out.push(...rows.map((row) => row.map((cell) => printable(String(cell)))))
  return out.toString()
}

function modelTable({ name, config, provenance }: Manifest): string {
  const { layers, hidden, heads, kvHeads, headDim, experts, expertUnits, sharedUnits } = config
  const rows: [string, string][] = [
    ['name', name],
    ['source', provenance.source],
    ['licence', provenance.licence],
    ['packed by', provenance.tool],
    [
      'shape',
      `${layers} layers, hidden ${hidden}, ${heads} query and ${kvHeads} key-value heads of ${headDim}`,
    ],
    [
      'experts',
      `${experts} a layer of ${expertUnits} units, ${sharedUnits > 0 ? sharedUnits : 'no'} shared units`,
    ],
    ['gate', describeGate(config)],
    [
      'vocabulary',
      `${config.vocab} tokens, head ${config.tiedHead ? 'tied to the embedding' : 'of its own'}`,
    ],
    ['context', `${config.context} tokens`],
  ]
  return table([], rows)
}

function describeGate({ gate }: ModelConfig): string {
  const { kind, source, selection, offsets } = gate
  const how = {
    all: 'every expert',
    top_k: selection.by === 'top_k' ? `the best ${selection.k}` : '',
    threshold: selection.by === 'threshold' ? `those above ${selection.eps} / experts` : '',
    positive: 'those with z > 0',
  }[selection.by]
  const where =
    kind === 'all'
      ? ''
      : `, on ${source === 'own' ? "the layer's own input" : 'the input of the layer before'}`
  const shares = Object.keys(offsets ?? {}).sort((a, b) => Number(a) - Number(b))
  return `${kind}, ${how}${where}${shares.length > 0 ? `; shares ${shares.join(', ')}` : ''}`
}

function sizeTable(manifest: Manifest): string {
  const { config, experts, text, trunk } = manifest
  const parts = new Map<string, { bytes: number; layouts: Set<string> }>()
  for (const tensor of trunk.tensors) {
    const part = partOf(tensor)
    const entry = parts.get(part) ?? { bytes: 0, layouts: new Set() }
    entry.bytes += tensorBytes(tensor)
    entry.layouts.add(tensor.fineRows === undefined ? tensor.layout : `q8 below ${tensor.fineRows}, q4`)
    parts.set(part, entry)
  }
  const image = trunkBytes(manifest)
  const bundles = config.layers * config.experts * experts.bytes
  const files = text.tokenizer.bytes + (text.chatTemplate?.bytes ?? 0)
  const total = image + bundles + files
  const row = (part: string, layout: string, objects: string, bytes: number): Row => [
    part,
    layout,
    objects,
    megabytes(bytes),
    percent(bytes / total),
  ]
  return table(
    ['part', 'layout', 'objects', 'bytes', 'of all'],
    [
      row('trunk', '', `${trunk.shards.length}`, image),
      ...[...parts].map(([part, { bytes, layouts }]) => row(`  ${part}`, [...layouts].join(), '', bytes)),
      row('experts', experts.layout, `${config.layers} x ${config.experts}`, bundles),
      row('tokenizer and template', '', `${text.chatTemplate ? 2 : 1}`, files),
      row('all', '', '', total),
    ],
  )
}

/** The line of the size table that a tensor counts to. */
function partOf({ name, layout }: TrunkTensor): string {
  if (name.endsWith('.row_scale')) return 'row scales'
  if (name.includes('.gate.')) return 'gates'
  if (layout === 'f32') return 'norms and frequencies'
  if (name.includes('.attention.')) return 'attention'
  if (name.includes('.shared.')) return 'shared experts'
  return name === 'head' ? 'head' : 'embedding'
}

function errorTable({ quantisation }: Manifest): string {
  const groups = Map.groupBy(quantisation, ({ name }) => name.replace(/^model\.(layers\.\d+\.)?/, ''))
  return table(
    ['relative error', 'layout', 'least', 'median', 'most'],
    [...groups].map(([name, errors]) => {
      const sorted = errors.map(({ relativeError }) => relativeError).sort((a, b) => a - b)
      const at = (share: number) => percent(sorted[Math.floor(share * (sorted.length - 1))], 2)
      return [name, errors[0].layout, at(0), at(0.5), at(1)]
    }),
  )
}

function qualityTable({ quality }: Manifest): string | undefined {
  if (!quality) return undefined
  return table(
    ['quality on', 'share asked for', 'perplexity', 'KL to the teacher'],
    quality.map(({ share, text, perplexity, kl }) => [
      text,
      percent(share),
      perplexity.toFixed(2),
      kl.toFixed(3),
    ]),
  )
}

function profileTable({ profile }: Manifest): string | undefined {
  if (!profile) return undefined
  const mean = (row: readonly number[]) => row.reduce((sum, share) => sum + share, 0) / row.length
  return table(
    ['layer', 'active share', 'least used expert', 'most used'],
    profile.map((row, layer) => [
      layer,
      percent(mean(row)),
      percent(Math.min(...row)),
      percent(Math.max(...row)),
    ]),
  )
}
