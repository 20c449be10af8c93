/**
 * @module
 * Numbers as people read them, and foreign words as a terminal may show them.
 */
import type { ModelConfig } from '@sparsedge/engine/model/config'
import { tensorNames, tensorShape } from '@sparsedge/engine/model/weights'

/** 10^6 bytes. */
export function megabytes(bytes: number): string {
  return `${(bytes / 1e6).toFixed(bytes < 1e7 ? 2 : 1)} MB`
}

export function percent(share: number, digits = 1): string {
  return `${(100 * share).toFixed(digits)} %`
}

/** All weights of a model, floats and quantised ones. */
export function weightCount(config: ModelConfig): number {
  const sizes = tensorNames(config).map((name) =>
    (tensorShape(config, name) ?? []).reduce((product, n) => product * n, 1),
  )
  return sizes.reduce((sum, n) => sum + n, 0)
}

/**
 * A text that may come from a pack or a checkpoint, for a terminal: without what moves the cursor, sets colours or titles,
 * or turns the direction of writing. Lines stay lines.
 */
export function printable(text: string): string {
  return text.replace(/(?!\n)[\p{Cc}\p{Bidi_Control}\u2028\u2029]/gu, '\ufffd')
}
