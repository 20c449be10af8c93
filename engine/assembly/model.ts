/**
 * @module
 * The model as the kernels see it: addresses and sizes, written once by the host (src/backends/wasm/plan.ts, in the
 * same order, four bytes a field) and read by everything else. Nothing here owns memory.
 */

/** Where one quantised matrix lies: its planes of tiles and its row scales R. */
@unmanaged
export class Matrix {
  tiles: usize
  /** 1 for `q4`, 2 for `q8`; the second follows the first and counts a sixteenth. */
  planes: i32
  /** f32 [rows] */
  scales: usize
  /** How many rows, from the first on, the second plane covers: all but in the embedding and the head. */
  fineRows: i32
}

@unmanaged
export class Layer {
  attentionNorm: usize // f32 [hidden]
  ffnNorm: usize // f32 [hidden]
  gateWeight: usize // f32 [experts, hidden]
  gateBias: usize // f32 [experts]
  expertScales: usize // f32 [experts, 2 expertUnits]
  downScales: usize // f32 [hidden]
  qkv: Matrix // -> [qkvRows, hidden]
  output: Matrix // -> [hidden, heads headDim]
  sharedGateUp: Matrix // -> [2 sharedUnits, hidden]
  sharedDown: Matrix // -> [hidden, sharedUnits]
}

@unmanaged
export class Model {
  // Shapes, as in src/model/config.ts.
  hidden: i32
  heads: i32
  kvHeads: i32
  headDim: i32
  experts: i32
  expertUnits: i32
  sharedUnits: i32
  vocab: i32
  normEps: f32
  ropeScale: f32
  /** 0 all, 1 softmax, 2 softmax_renormalised, 3 clamped_linear */
  gateKind: i32

  // Weights.
  invFreq: usize // f32 [headDim / 2]
  embed: Matrix // -> [vocab, hidden]
  head: Matrix // -> [vocab, hidden]; the same as embed where tied
  norm: usize // f32 [hidden]
  layers: usize // Layer [layers]
  arena: usize
  slotBytes: usize
  cache: usize // see cache.ts
  cachePages: i32
  expertGateUp: Matrix // -> [2 expertUnits, hidden] of the routed expert at hand
  expertDown: Matrix // -> [hidden, expertUnits] of the same

  // What the host fills in for a step.
  tokens: usize // u32 [chunk]
  pages: usize // i32 [contextTokens / PAGE_TOKENS]: the sequence's pages of the cache
  slots: usize // i32 [experts]: arena slot of each routed expert of the layer at hand
  gateTop: usize // i32 [1]: how many experts a softmax gate keeps, or 0 where the levels decide
  gateLevels: usize // f32 [layers]: added to z (clamped_linear), or eps (softmax with a threshold)

  available: usize // i32 [experts]: 1 for an expert of the layer at hand that `restrict` may keep, else 0

  // What the host reads.
  routed: usize // u16 [2, experts]: union of the routed experts, ascending; layer & 1 chooses the row
  uses: usize // u16 [2, experts]: by how many tokens each of these is routed
  logits: usize // f32 [vocab, padded to 16]
  peaks: usize // f32 [vocab / 16]: the largest logit of each run of 16
  masses: usize // f64 [vocab / 16]: what tokens weigh, added up run by run (masses.ts)
  choices: usize // i32 [2]: pairs of token and expert that gates had chosen, and that `restrict` left

  // Scratch; a "token" is one of the chunk at hand, a "record" see record.ts.
  x: usize // f32 [chunk, hidden]: the residual stream
  h: usize // f32 [chunk, hidden]: normed input of the block at hand
  records: usize // record [chunk, hidden / 32]: the same
  sum: usize // f32 [chunk, hidden]: accumulator of the block's output
  angles: usize // f32 [chunk, 2, headDim / 2]: cosines, sines
  qkvRows: usize // f32 [chunk, (heads + 2 kvHeads) headDim]
  context: usize // f32 [chunk, heads headDim]: what attention gathered
  contextRecords: usize // record [chunk, heads headDim / 32]
  query: usize // i16 [3, headDim]
  scores: usize // f32 [3, contextTokens]
  scoreBytes: usize // bytes of a row of scores
  shares: usize // i16 [3, PAGE_TOKENS]
  gates: usize // f32 [2, chunk, experts]; layer & 1 chooses
  gateScores: usize // f32 [2, chunk, experts]: z, likewise
  assigned: usize // { token: i32, weight: f32 } [chunk]: who routes the expert at hand
  gateUp: usize // f32 [batch, 2 units]
  unitRecords: usize // record [batch, units / 32]
  batch: usize // Token [chunk]: whom a matrix is multiplied by (several.ts)
  tileBest: usize // f32 [vocab / 16]: the best logit of each tile of the head by its first plane
  terms: usize // Term [4, 2, longest row / 32]: what a row tile is the sum of (multiply.ts)
}

/** Tokens of a chunk. */
export const CHUNK = 128

/** Tokens that an expert of so many units is applied to at once: a chunk, if that is not too many activations; at least 4. */
@inline
export function batchOf(units: i32): i32 {
  return max(min(12288 / units, CHUNK), 4)
}

/** The bound model; every entry point works on it. */
export let model: Model = changetype<Model>(0)

/** Points every kernel to the model that the host laid out at `address`. */
export function bind(address: usize): void {
  model = changetype<Model>(address)
}

export function layerAt(index: i32): Layer {
  return changetype<Layer>(load<usize>(model.layers + ((<usize>index) << 2)))
}
