/**
 * @module
 * What the host calls, in the order in which it does: `bind` once; then for each chunk of tokens `begin`, for each layer
 * `attention`, `gate`, `restrict` where experts are missing, `experts`, and after the last chunk `head`; then `weigh` as often
 * as the sampler asks.
 *
 * Built twice from the same sources, with and without relaxed SIMD. Only the integer dot product differs, and it is
 * exact, so that both give the same bits.
 */
import { attention } from './attention.ts'
import { probe, useDot } from './dot.ts'
import { experts } from './experts.ts'
import { ffnInput, gate, restrict } from './gate.ts'
import { weigh } from './masses.ts'
import { bind } from './model.ts'
import { begin, head } from './vocabulary.ts'

// In two steps: asc does not find `export … from './file.ts'`.
export { attention, begin, bind, experts, ffnInput, gate, head, probe, restrict, useDot, weigh }
