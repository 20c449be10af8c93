/**
 * @module
 * Cuts text into the words that byte-pair encoding never merges across. Only the cutters that are known to the letter are
 * here; a tokenizer with any other goes to the library.
 *
 * White space and digits are Unicode's, as in the reference (Rust): JavaScript's `\s` takes U+FEFF for a space and not
 * U+0085, its `\d` knows ASCII only.
 */
import { z } from 'zod'

/** Text → its words, which concatenate to it. */
export type Cutter = (text: string) => string[]

const space = String.raw`\p{White_Space}`
const other = String.raw`[^${space}\p{L}\p{N}]`
/** White space up to the next word, less the last one, which goes with the word if it is a plain space. */
const spaces = String.raw`${space}+(?!\P{White_Space})|${space}+`

/** GPT-2: contractions, letters, digits and the rest, each with a leading space if there is one. */
const GPT2 = new RegExp(String.raw`'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?${other}+|${spaces}`, 'gu')
const DIGIT = /\p{N}|\P{N}+/gu
const DIGITS = /\p{N}+|\P{N}+/gu

/** Patterns of `Split`, as tokenizer.json writes them, and the same in JavaScript. */
const SPLITS = new Map([
  [
    // Llama 3 and its kin.
    String.raw`(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`,
    new RegExp(
      // ſ folds to s, as it does there.
      String.raw`'(?:[sSſtTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}` +
        String.raw`| ?${other}+[\r\n]*|${space}*[\r\n]+|${spaces}`,
      'gu',
    ),
  ],
])

const ByteLevel = z.object({
  type: z.literal('ByteLevel'),
  add_prefix_space: z.literal(false),
  use_regex: z.boolean().default(true),
})
const Digits = z.object({ type: z.literal('Digits'), individual_digits: z.boolean() })
const Split = z.object({
  type: z.literal('Split'),
  pattern: z.object({ Regex: z.string() }),
  behavior: z.literal('Isolated'),
  invert: z.literal(false),
})
const Sequence = z.object({ type: z.literal('Sequence'), pretokenizers: z.array(z.unknown()).min(1).max(8) })

/**
 * The cutter for `pre_tokenizer` of tokenizer.json.
 *
 * @returns undefined where it is not one of those known here, or does not end in bytes
 */
export function cutterFor(config: unknown): Cutter | undefined {
  const sequence = Sequence.safeParse(config)
  const steps = sequence.success ? sequence.data.pretokenizers : [config]
  // Bytes come last: what would cut after it would see the byte alphabet and not the text.
  const bytes = ByteLevel.safeParse(steps.at(-1))
  if (!bytes.success) return undefined
  const patterns = steps.slice(0, -1).map(patternFor)
  if (bytes.data.use_regex) patterns.push(GPT2)
  if (!patterns.every((pattern) => pattern !== undefined)) return undefined
  return (text) =>
    patterns.reduce((words, pattern) => words.flatMap((word) => word.match(pattern) ?? []), [text])
}

function patternFor(step: unknown): RegExp | undefined {
  const digits = Digits.safeParse(step)
  if (digits.success) return digits.data.individual_digits ? DIGIT : DIGITS
  const split = Split.safeParse(step)
  return split.success ? SPLITS.get(split.data.pattern.Regex) : undefined
}
