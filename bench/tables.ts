/**
 * @module
 * Numbers as tables, for the terminal and for docs/.
 */

/** A table; its first row is the head. */
export interface Section {
  readonly title: string
  readonly rows: readonly (readonly string[])[]
}

export interface Verdict {
  readonly what: string
  readonly value: number
  readonly target: number
  /** How far one goes for the other: a ratio must reach its target, a cost must stay below. */
  readonly better: 'higher' | 'lower'
  readonly pass: boolean
}

export function verdictSection(verdicts: readonly Verdict[]): Section {
  const rows = verdicts.map(({ what, value, target, better, pass }) => [
    what,
    short(value),
    `${better === 'higher' ? '≥' : '≤'} ${short(target)}`,
    pass ? 'pass' : 'MISS',
  ])
  return { title: 'Ratios and targets', rows: [['what', 'measured', 'target', ''], ...rows] }
}

export function asText(sections: readonly Section[]): string {
  return sections.map(({ title, rows }) => `\n${title}\n\n${columns(rows)}`).join('\n')
}

export function asMarkdown(sections: readonly Section[]): string {
  const line = (cells: readonly string[]) => `| ${cells.join(' | ')} |`
  const tables = sections.map(
    ({ title, rows: [head, ...body] }) =>
      `## ${title}\n\n${[line(head), line(head.map(() => '---')), ...body.map(line)].join('\n')}\n`,
  )
  return tables.join('\n')
}

export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2
}

/** Three digits that count. A ratio to nothing is infinite. */
export const short = (value: number) =>
  Number.isFinite(value) ? value.toFixed(value >= 100 ? 0 : value >= 10 ? 1 : 2) : '∞'

function columns(rows: readonly (readonly string[])[]): string {
  const widths = rows[0].map((_, i) => Math.max(...rows.map((row) => row[i].length)))
  return rows
    .map((row) =>
      row
        .map((cell, i) => cell.padEnd(widths[i]))
        .join('  ')
        .trimEnd(),
    )
    .join('\n')
}
