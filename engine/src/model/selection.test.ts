import { describe, expect, it } from 'vitest'
import { GATES, tinyConfig } from '../../../test/fixtures/tiny.ts'
import type { ExpertSelection } from '../request.ts'
import type { GateConfig } from './config.ts'
import { gateRule } from './selection.ts'

const OFFSETS = { '0.5': [0, 0, 0], '0.35': [-0.1, -0.2, -0.3], '1': [1e4, 1e4, 1e4] }
const ELASTIC: GateConfig = { ...GATES.clamped, offsets: OFFSETS }
const ELASTIC_SOFTMAX: GateConfig = { ...GATES.softmaxThreshold, offsets: { '0.5': [1, 1.5, 2] } }
const NO_NUMBER = 'this model does not select a fixed number of experts'
const NO_THRESHOLD = 'this model does not select experts by a threshold'
const SHARES = 'ask for a share, one of 0.35, 0.5, 1'
const NUMBER = 'ask for a number of experts (top_k), from 1 to 4'
const THRESHOLD = 'ask for a threshold, from 0 to below 4'
const NOTHING = 'it has only its own selection; leave this out'

const rule = (gate: GateConfig, asked?: ExpertSelection) => {
  const { top, levels } = gateRule(tinyConfig({ gate }), asked)
  return { top, levels: [...levels] }
}

describe('gateRule', () => {
  it.each<[string, GateConfig, ExpertSelection | undefined, number, number[]]>([
    ['nothing asked, clamped linear', ELASTIC, undefined, 0, [0, 0, 0]],
    ['nothing asked, top k', GATES.softmaxTopK, undefined, 2, [0, 0, 0]],
    ['nothing asked, threshold', ELASTIC_SOFTMAX, undefined, 0, [1, 1, 1]],
    ['nothing asked, always on', GATES.all, undefined, 0, [0, 0, 0]],
    ['a share', ELASTIC, { share: 0.35 }, 0, OFFSETS['0.35'].map(Math.fround)],
    ['the whole share', ELASTIC, { share: 1 }, 0, OFFSETS['1']],
    ['a share of a threshold gate', ELASTIC_SOFTMAX, { share: 0.5 }, 0, [1, 1.5, 2]],
    ['k', GATES.softmaxTopK, { topK: 4 }, 4, [0, 0, 0]],
    ['a threshold', GATES.softmaxThreshold, { threshold: 0.5 }, 0, [0.5, 0.5, 0.5]],
    ['no threshold at all', GATES.softmaxThreshold, { threshold: 0 }, 0, [0, 0, 0]],
  ])('%s', (_, gate, asked, top, levels) => {
    expect(rule(gate, asked)).toEqual({ top, levels })
  })

  it.each<[string, GateConfig, ExpertSelection, string]>([
    ['a share that is not listed', ELASTIC, { share: 0.4 }, `a share of 0.4; ${SHARES}`],
    ['a share that is a name of every object', ELASTIC, { share: Number.NaN }, SHARES],
    ['a share of a pack that lists none', GATES.clamped, { share: 1 }, NOTHING],
    ['a share of top k', { ...GATES.softmaxTopK, offsets: OFFSETS }, { share: 0.5 }, NUMBER],
    ['k of a clamped linear gate', ELASTIC, { topK: 2 }, `${NO_NUMBER}; ${SHARES}`],
    ['k of a threshold gate', ELASTIC_SOFTMAX, { topK: 2 }, `${NO_NUMBER}; ask for a share, one of 0.5`],
    [
      'k of a threshold gate without shares',
      GATES.softmaxThreshold,
      { topK: 2 },
      `${NO_NUMBER}; ${THRESHOLD}`,
    ],
    ['k of none', GATES.all, { topK: 2 }, `${NO_NUMBER}; ${NOTHING}`],
    ['more than all', GATES.softmaxTopK, { topK: 5 }, 'ask for 1 to 4 of them'],
    ['k = 0', GATES.softmaxTopK, { topK: 0 }, 'ask for 1 to 4 of them'],
    ['half an expert', GATES.softmaxTopK, { topK: 1.5 }, 'ask for 1 to 4 of them'],
    ['a threshold of top k', GATES.softmaxTopK, { threshold: 1 }, `${NO_THRESHOLD}; ${NUMBER}`],
    ['a threshold of a clamped gate', ELASTIC, { threshold: 1 }, `${NO_THRESHOLD}; ${SHARES}`],
    ['a threshold that nothing passes', GATES.softmaxThreshold, { threshold: 4 }, 'at least 0 and below 4'],
    ['a threshold below 0', GATES.softmaxThreshold, { threshold: -1 }, 'at least 0 and below 4'],
    ['a threshold that is no number', GATES.softmaxThreshold, { threshold: Number.NaN }, 'at least 0'],
  ])('refuses %s', (_, gate, asked, message) => {
    expect(() => gateRule(tinyConfig({ gate }), asked)).toThrow(
      expect.objectContaining({ code: 'unsupported_selection', message: expect.stringContaining(message) }),
    )
  })
})
