/**
 * @module
 * Gates: from a token's hidden state to one weight per expert, 0 where the expert is off, and the union of the experts
 * that a chunk routes; and the same over those experts only that are to be had. The formulas are those of
 * src/model/gate.ts. A weight that is NaN is not 0: its expert runs, and what comes of it is NaN, rather than as if the gate
 * had said no.
 */
import { CHUNK, layerAt, model } from './model.ts'
import { normalise, recordBytes } from './record.ts'
import { exp4, sumLanes } from './vector.ts'

const ALL = 0
const SOFTMAX_RENORMALISED = 2
const CLAMPED_LINEAR = 3

/** Gate weights of a layer's experts for the chunk: f32 [CHUNK, experts]. Two layers' worth are kept, for look-ahead. */
@inline
export function gatesOf(layer: i32): usize {
  return model.gates + ((<usize>((layer & 1) * CHUNK * model.experts)) << 2)
}

@inline
export function routedOf(layer: i32): usize {
  return model.routed + ((<usize>((layer & 1) * model.experts)) << 1)
}

/** h = norm(x), the FFN's input, for `count` tokens. */
export function ffnInput(layer: i32, count: i32): void {
  const hidden = model.hidden
  for (let t = 0; t < count; t++) {
    const at = (<usize>(t * hidden)) << 2
    const records = model.records + <usize>t * recordBytes(hidden)
    normalise(model.x + at, layerAt(layer).ffnNorm, model.normEps, hidden, model.h + at, records)
  }
}

@inline
function scoresOf(layer: i32): usize {
  return model.gateScores + ((<usize>((layer & 1) * CHUNK * model.experts)) << 2)
}

/**
 * Computes a layer's gate weights for `count` tokens from their states in `model.h`, and lists the experts that any of
 * them routes, ascending.
 *
 * @returns the length of that list
 */
export function gate(layer: i32, count: i32): i32 {
  const row = (<usize>model.experts) << 2
  let gates = gatesOf(layer)
  let z = scoresOf(layer)
  for (let t = 0; t < count; t++) {
    if (model.gateKind !== ALL) scoreExperts(layer, model.h + ((<usize>(t * model.hidden)) << 2), z)
    weigh(layer, z, 0, gates)
    gates += row
    z += row
  }
  return union(layer, count)
}

/**
 * Weighs again what {@link gate} has weighed, as if there were no other experts than those that `model.available` marks:
 * a gate that keeps a number of experts keeps as many of them; of the others, those that are missing are off. Counts
 * what the gates had chosen, and what of it is left, in `model.choices`.
 *
 * @returns the length of the new list
 */
export function restrict(layer: i32, count: i32): i32 {
  const row = (<usize>model.experts) << 2
  const available = model.available
  let gates = gatesOf(layer)
  let z = scoresOf(layer)
  let chosen = 0
  let honoured = 0
  for (let t = 0; t < count; t++) {
    for (let e: usize = 0; e < row; e += 4) {
      if (load<f32>(gates + e) === 0) continue
      chosen++
      honoured += load<i32>(available + e)
    }
    weigh(layer, z, available, gates)
    gates += row
    z += row
  }
  store<i32>(model.choices, chosen)
  store<i32>(model.choices, honoured, 4)
  return union(layer, count)
}

/** Gate weights of one token from its scores z. @param available i32 [experts], or 0 where all are */
function weigh(layer: i32, z: usize, available: usize, gates: usize): void {
  const level = load<f32>(model.gateLevels + ((<usize>layer) << 2))
  if (model.gateKind === CLAMPED_LINEAR) clamp(z, level, available, gates)
  else if (model.gateKind === ALL) all(available, gates)
  else softmax(z, load<i32>(model.gateTop), level, available, gates)
}

@inline
function isAvailable(available: usize, at: usize): bool {
  return available === 0 || load<i32>(available + at) !== 0
}

/** z = W · h + b. Row-major floats: a row's products are summed in eight lanes, then across them. */
function scoreExperts(layer: i32, h: usize, z: usize): void {
  const weights = layerAt(layer)
  let row = weights.gateWeight
  const rowBytes = (<usize>model.hidden) << 2
  for (let e = 0; e < model.experts; e++) {
    let a = f32x4.splat(0)
    let b = a
    for (let i: usize = 0; i < rowBytes; i += 32) {
      a = f32x4.add(a, f32x4.mul(v128.load(row + i), v128.load(h + i)))
      b = f32x4.add(b, f32x4.mul(v128.load(row + i, 16), v128.load(h + i, 16)))
    }
    const at = (<usize>e) << 2
    store<f32>(z + at, sumLanes(f32x4.add(a, b)) + load<f32>(weights.gateBias + at))
    row += rowBytes
  }
}

function all(available: usize, gates: usize): void {
  for (let e: usize = 0; e < (<usize>model.experts) << 2; e += 4) {
    store<f32>(gates + e, isAvailable(available, e) ? 1 : 0)
  }
}

function clamp(z: usize, offset: f32, available: usize, gates: usize): void {
  for (let e: usize = 0; e < (<usize>model.experts) << 2; e += 4) {
    const g = min<f32>(max<f32>(load<f32>(z + e) + offset, 0), 1)
    store<f32>(gates + e, isAvailable(available, e) ? g : 0)
  }
}

/** p = softmax(z) over all experts, 0 where not selected, renormalised if the gate is of that kind. */
function softmax(z: usize, top: i32, eps: f32, available: usize, gates: usize): void {
  const experts = model.experts
  const end = (<usize>experts) << 2
  let peak = load<f32>(z)
  for (let e: usize = 4; e < end; e += 4) peak = max(peak, load<f32>(z + e))
  let sum: f32 = 0
  for (let e: usize = 0; e < end; e += 4) {
    const p = f32x4.extract_lane(exp4(f32x4.splat(load<f32>(z + e) - peak)), 0)
    store<f32>(gates + e, p)
    sum += p
  }
  let kept: f32 = 0
  for (let e = 0; e < experts; e++) {
    const at = gates + ((<usize>e) << 2)
    const p = load<f32>(at) / sum
    const passes = top > 0 ? rank(z, e, available) < top : !(<f32>experts * p <= eps)
    const on = passes && isAvailable(available, (<usize>e) << 2)
    store<f32>(at, on ? p : 0)
    if (on) kept += p
  }
  if (model.gateKind === SOFTMAX_RENORMALISED && kept > 0) {
    for (let e: usize = 0; e < end; e += 4) store<f32>(gates + e, load<f32>(gates + e) / kept)
  }
}

/** How many available experts come before expert e: those with a larger z, and of equals those with a lower index. */
function rank(z: usize, e: i32, available: usize): i32 {
  const own = load<f32>(z + ((<usize>e) << 2))
  let before = 0
  for (let i = 0; i < model.experts; i++) {
    const at = (<usize>i) << 2
    if (!isAvailable(available, at)) continue
    const other = load<f32>(z + at)
    if (other > own || (other === own && i < e)) before++
  }
  return before
}

function union(layer: i32, count: i32): i32 {
  const experts = model.experts
  const gates = gatesOf(layer)
  const list = (<usize>((layer & 1) * experts)) << 1
  let length = 0
  for (let e = 0; e < experts; e++) {
    let tokens = 0
    for (let t = 0; t < count; t++) {
      tokens += i32(load<f32>(gates + ((<usize>(t * experts + e)) << 2)) !== 0)
    }
    if (tokens === 0) continue
    const at = list + ((<usize>length) << 1)
    store<u16>(model.routed + at, <u16>e)
    store<u16>(model.uses + at, <u16>tokens)
    length++
  }
  return length
}
