/**
 * @module
 * The FFN of a layer: the shared expert, then the routed ones in ascending order, whatever order they arrived in. All of
 * them share the row scales of the down projection, so that their sum stays unscaled until the end.
 */
import { gatesOf, routedOf } from './gate.ts'
import { batchOf, Layer, layerAt, Matrix, model } from './model.ts'
import { expertStreams, listTerms, planeBytes, sumTerms, termAt } from './multiply.ts'
import { quantise, recordBytes } from './record.ts'
import { listToken, multiplySeveral } from './several.ts'
import { addScaledRows, clear, exp4 } from './vector.ts'

/**
 * x += shared(h) + Σ g_i · E_i(h) for `count` tokens. The first `routed` entries of the layer's list must be in the
 * arena, their slots in `model.slots`.
 *
 * @returns how many (token, routed expert) pairs there were
 */
export function experts(index: i32, count: i32, routed: i32): i32 {
  const layer = layerAt(index)
  const hidden = model.hidden
  clear(model.sum, (<usize>(count * hidden)) << 2)
  if (model.sharedUnits > 0) {
    for (let t = 0; t < count; t++) assign(t, t, 1)
    run(layer.sharedGateUp, layer.sharedDown, model.sharedUnits, count)
  }
  const pairs = count === 1 ? together(index, layer, routed) : oneByOne(index, layer, routed, count)
  for (let t = 0; t < count; t++) {
    const at = (<usize>(t * hidden)) << 2
    addScaledRows(model.x + at, model.sum + at, layer.downScales, hidden)
  }
  return pairs
}

/** Several tokens: each expert for all that route it. */
function oneByOne(index: i32, layer: Layer, routed: i32, count: i32): i32 {
  let pairs = 0
  for (let i = 0; i < routed; i++) {
    const expert = locate(index, layer, i)
    const assigned = assignRouted(index, expert, count)
    run(model.expertGateUp, model.expertDown, model.expertUnits, assigned)
    pairs += assigned
  }
  return pairs
}

/** One token: a few experts at a time. */
function together(index: i32, layer: Layer, routed: i32): i32 {
  const most = expertStreams()
  for (let first = 0; first < routed; first += most) {
    const count = min(routed - first, most)
    for (let i = 0; i < count; i++) {
      const expert = locate(index, layer, first + i)
      const member = memberAt(i)
      member.gateUp = model.expertGateUp.tiles
      member.scales = model.expertGateUp.scales
      member.down = model.expertDown.tiles
      member.weight = load<f32>(gatesOf(index) + ((<usize>expert) << 2))
    }
    group(count)
  }
  return routed
}

/** Points the model's expert matrices to the one in place `i` of the layer's list. @returns its number */
function locate(index: i32, layer: Layer, i: i32): i32 {
  const expert = <i32>load<u16>(routedOf(index) + ((<usize>i) << 1))
  const units = model.expertUnits
  const gateUp = model.expertGateUp
  gateUp.tiles = model.arena + <usize>load<i32>(model.slots + ((<usize>i) << 2)) * model.slotBytes
  gateUp.scales = layer.expertScales + ((<usize>(expert * units)) << 3)
  model.expertDown.tiles = gateUp.tiles + <usize>gateUp.planes * planeBytes(2 * units, model.hidden)
  return expert
}

// ---- Which tokens an expert sees ----------------------------------------------------------------------------------

@inline
function assign(i: i32, token: i32, weight: f32): void {
  store<i32>(model.assigned + ((<usize>i) << 3), token)
  store<f32>(model.assigned + ((<usize>i) << 3), weight, 4)
}

@inline
function assignedToken(i: i32): i32 {
  return load<i32>(model.assigned + ((<usize>i) << 3))
}

@inline
function assignedWeight(i: i32): f32 {
  return load<f32>(model.assigned + ((<usize>i) << 3), 4)
}

/** Lists the tokens that route an expert. @returns how many */
function assignRouted(layer: i32, expert: i32, count: i32): i32 {
  let length = 0
  let at = gatesOf(layer) + ((<usize>expert) << 2)
  for (let t = 0; t < count; t++) {
    const weight = load<f32>(at)
    if (weight !== 0) assign(length++, t, weight)
    at += (<usize>model.experts) << 2
  }
  return length
}

// ---- One expert ---------------------------------------------------------------------------------------------------

/** sum[token] += weight · down · (silu(gate h) ⊙ up h), unscaled, for the `count` assigned tokens. */
function run(gateUp: Matrix, down: Matrix, units: i32, count: i32): void {
  const batch = batchOf(units)
  for (let i = 0; i < count; i += batch) several(gateUp, down, units, i, min(count - i, batch))
}

/** The same for `count` assigned tokens from `first` on, no more than a batch. */
function several(gateUp: Matrix, down: Matrix, units: i32, first: i32, count: i32): void {
  const hidden = model.hidden
  const valueStride = (<usize>units) << 3
  const recordStride = recordBytes(units)
  clear(model.gateUp, valueStride * <usize>count)
  for (let i = 0; i < count; i++) {
    listToken(i, recordOf(assignedToken(first + i)), model.gateUp + valueStride * <usize>i)
  }
  multiplySeveral(gateUp.tiles, gateUp.planes, units >>> 3, hidden >>> 5, count)
  for (let i = 0; i < count; i++) {
    const values = model.gateUp + valueStride * <usize>i
    const records = model.unitRecords + recordStride * <usize>i
    activate(values, gateUp.scales, units)
    quantise(values, units, records, assignedWeight(first + i))
    listToken(i, records, sumOf(assignedToken(first + i)))
  }
  multiplySeveral(down.tiles, down.planes, hidden >>> 4, units >>> 5, count)
}

// ---- A group of routed experts for one token -------------------------------------------------------------------------

/** What the token needs of an expert: its tiles, the row scales of its gate and up, and its weight. */
@unmanaged
class Member {
  gateUp: usize
  scales: usize
  down: usize
  weight: f32
}

const MEMBER_BYTES = offsetof<Member>()
const MEMBERS = memory.data(64)

@inline
function memberAt(i: i32): Member {
  return changetype<Member>(MEMBERS + <usize>i * MEMBER_BYTES)
}

/**
 * sum[0] += Σ weight · down · (silu(gate h) ⊙ up h), unscaled, of the first `count` members: gate and up of all of them a
 * block of each in turn, then down row tile by row tile, a member after the other.
 */
function group(count: i32): void {
  const hidden = model.hidden
  const units = model.expertUnits
  const blocks = hidden >>> 5
  const unitBlocks = units >>> 5
  const valueStride = (<usize>units) << 3
  const recordStride = recordBytes(units)
  const gateUpPlanes = model.expertGateUp.planes
  const downPlanes = model.expertDown.planes
  const gateUpPlane = planeBytes(2 * units, hidden)
  const downPlane = planeBytes(hidden, units)

  clear(model.gateUp, valueStride * <usize>count)
  for (let i = 0; i < count; i++) {
    const tiles = memberAt(i).gateUp
    const values = model.gateUp + <usize>i * valueStride
    listTerms(termAt(i), 1, count, tiles, gateUpPlanes, gateUpPlane, blocks, recordOf(0), values)
  }
  sumTerms(count * gateUpPlanes * blocks, units >>> 3, blocks)

  const terms = downPlanes * unitBlocks
  for (let i = 0; i < count; i++) {
    const member = memberAt(i)
    const values = model.gateUp + <usize>i * valueStride
    const records = model.unitRecords + <usize>i * recordStride
    activate(values, member.scales, units)
    quantise(values, units, records, member.weight)
    listTerms(termAt(i * terms), 1, 1, member.down, downPlanes, downPlane, unitBlocks, records, sumOf(0))
  }
  sumTerms(count * terms, hidden >>> 4, unitBlocks)
}

// ---- Places -----------------------------------------------------------------------------------------------------------

@inline
function recordOf(token: i32): usize {
  return model.records + <usize>token * recordBytes(model.hidden)
}

@inline
function sumOf(token: i32): usize {
  return model.sum + ((<usize>(token * model.hidden)) << 2)
}

/** values[i] = silu(values[i] · R_i) · (values[units + i] · R_{units + i}), in place of the first `units`. */
function activate(values: usize, scales: usize, units: i32): void {
  const half = (<usize>units) << 2
  for (let i: usize = 0; i < half; i += 16) {
    const g = f32x4.mul(v128.load(values + i), v128.load(scales + i))
    const u = f32x4.mul(v128.load(values + half + i), v128.load(scales + half + i))
    const e = exp4(f32x4.min(f32x4.neg(g), f32x4.splat(88)))
    v128.store(values + i, f32x4.mul(f32x4.div(g, f32x4.add(f32x4.splat(1), e)), u))
  }
}
