/**
 * @module
 * Tiny packs that between them take every path of the forward pass; test/goldens/tiny.py says what PyTorch makes of them.
 */
import { GATES, type TinyPackOptions } from '../fixtures/tiny.ts'

export const TINY_CASES: readonly (TinyPackOptions & { readonly name: string })[] = [
  { name: 'all', gate: GATES.all },
  { name: 'softmax-top-k', gate: GATES.softmaxTopK },
  { name: 'softmax-threshold', gate: GATES.softmaxThreshold },
  { name: 'renormalised-top-k', gate: GATES.renormalisedTopK },
  {
    name: 'renormalised-threshold',
    gate: { kind: 'softmax_renormalised', source: 'previous', selection: { by: 'threshold', eps: 0.8 } },
  },
  { name: 'clamped', gate: GATES.clamped },
  { name: 'clamped-look-ahead', gate: GATES.clampedLookAhead },
  { name: 'softmax-look-ahead', gate: GATES.softmaxLookAhead },
  { name: 'shared-expert', sharedUnits: 64, gate: GATES.softmaxTopK },
  { name: 'untied-head', tiedHead: false, layouts: { embedding: 'q4', attention: 'q8', experts: 'q8' } },
  { name: 'scaled-rotations', ropeScale: 1.25 },
  { name: 'one-key-head', kvHeads: 1, headDim: 32, experts: 5, expertUnits: 64 },
]

export const TINY_TOKENS = [5, 17, 3, 200, 42, 42, 7, 1, 99, 12, 64, 128, 0, 250, 31, 8]
