/**
 * @module
 * The reference backend, from a pack or from any float weights.
 */
import type { WeightSource } from '../../model/weights.ts'
import { packWeights } from '../../pack/weights.ts'
import type { BackendFactory } from '../backend.ts'
import { loadModel } from './model.ts'
import { ReferenceBackend } from './reference.ts'

export type { GateTrace, ReferenceBackend, Trace } from './reference.ts'

/** A factory for packs: everything is loaded, verified and dequantised before the first step. */
export function referenceBackend(): BackendFactory {
  return ({ manifest, store }, signal) => referenceOf(packWeights(manifest, store, signal))
}

/** The reference backend on weights that need not come from a pack, such as a checkpoint's own. */
export async function referenceOf(weights: WeightSource): Promise<ReferenceBackend> {
  return new ReferenceBackend(await loadModel(weights))
}
