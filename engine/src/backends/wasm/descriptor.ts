/**
 * @module
 * Writes the model's description into WASM memory: the structs of engine/assembly/model.ts, field by field in the order
 * in which they are declared there. Every field takes four bytes.
 */
import type { GateKind } from '../../model/config.ts'
import { planes, type QuantisedLayout } from '../../pack/layout.ts'
import type { Manifest } from '../../pack/manifest.ts'
import { rowScale } from '../../pack/trunk.ts'
import { PAGE_TOKENS, type Plan } from './plan.ts'

const GATE_KINDS = {
  all: 0,
  softmax: 1,
  softmax_renormalised: 2,
  clamped_linear: 3,
} as const satisfies Record<GateKind, number>

/** An address or a count; or a float. */
type Field = number | { readonly float: number }

/** @returns the address of the `Model`, for `bind` */
export function writeDescriptor(buffer: ArrayBuffer, manifest: Manifest, plan: Plan): number {
  const { config, trunk, experts } = manifest
  const { gate } = config
  const { scratch } = plan
  const view = new DataView(buffer, plan.descriptor.offset, plan.descriptor.bytes)
  let end = 0
  const struct = (...fields: Field[]): number => {
    const address = plan.descriptor.offset + end
    for (const field of fields) {
      if (typeof field === 'number') view.setUint32(end, field, true)
      else view.setFloat32(end, field.float, true)
      end += 4
    }
    return address
  }
  const tensors = new Map(trunk.tensors.map((tensor) => [tensor.name, tensor]))
  // 0 where the model has no such tensor; its gate kind or its sharedUnits keep the kernels from looking.
  const address = (name: string): number => {
    const tensor = tensors.get(name)
    return tensor ? plan.trunk.offset + tensor.offset : 0
  }
  const matrix = (name: string, scales = rowScale(name)): number => {
    const { layout, fineRows, shape } = tensors.get(name) ?? { layout: 'f32', shape: [0] }
    const fine = fineRows ?? shape[0]
    return struct(address(name), layout === 'f32' ? 0 : planes(layout), address(scales), fine)
  }
  const expertMatrix = (layout: QuantisedLayout, rows: number): number => struct(0, planes(layout), 0, rows)

  const layers: number[] = []
  for (let i = 0; i < config.layers; i++) {
    const layer = `layers.${i}`
    const matrices = [
      matrix(`${layer}.attention.qkv`),
      matrix(`${layer}.attention.output`),
      matrix(`${layer}.shared.gate_up`),
      matrix(`${layer}.shared.down`, rowScale(`${layer}.down`)),
    ]
    layers.push(
      struct(
        address(`${layer}.attention.norm`),
        address(`${layer}.ffn.norm`),
        address(`${layer}.gate.weight`),
        address(`${layer}.gate.bias`),
        address(rowScale(`${layer}.experts.gate_up`)),
        address(rowScale(`${layer}.down`)),
        ...matrices,
      ),
    )
  }
  const layerTable = struct(...layers)
  const embed = matrix('embed')
  const head = config.tiedHead ? embed : matrix('head')
  const expertGateUp = expertMatrix(experts.layout, 2 * config.expertUnits)
  const expertDown = expertMatrix(experts.layout, config.hidden)
  return struct(
    config.hidden,
    config.heads,
    config.kvHeads,
    config.headDim,
    config.experts,
    config.expertUnits,
    config.sharedUnits,
    config.vocab,
    { float: config.normEps },
    { float: config.ropeScale },
    GATE_KINDS[gate.kind],
    address('rope.inv_freq'),
    embed,
    head,
    address('norm'),
    layerTable,
    plan.arena.offset,
    plan.arena.slotBytes,
    plan.cache.offset,
    plan.cache.pages,
    expertGateUp,
    expertDown,
    scratch.tokens,
    scratch.pages,
    scratch.slots,
    scratch.gateTop,
    scratch.gateLevels,
    scratch.available,
    scratch.routed,
    scratch.uses,
    scratch.logits,
    scratch.peaks,
    scratch.masses,
    scratch.choices,
    scratch.x,
    scratch.h,
    scratch.records,
    scratch.sum,
    scratch.angles,
    scratch.qkvRows,
    scratch.context,
    scratch.contextRecords,
    scratch.query,
    scratch.scores,
    plan.cache.pages * PAGE_TOKENS * 4,
    scratch.shares,
    scratch.gates,
    scratch.gateScores,
    scratch.assigned,
    scratch.gateUp,
    scratch.unitRecords,
    scratch.batch,
    scratch.tileBest,
    scratch.terms,
  )
}
