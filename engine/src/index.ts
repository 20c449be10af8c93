/**
 * @module
 * Sparsedge's engine: DS-MoE language models from content-addressed shards, of which it fetches only what gates pick.
 * Stores and backends are imported by their own names, so that a bundle holds only those it uses.
 *
 * @example
 * import { createEngine } from '@sparsedge/engine'
 * import { referenceBackend } from '@sparsedge/engine/reference'
 * import { fsStore } from '@sparsedge/engine/store/fs'
 *
 * const engine = await createEngine({ store: fsStore('./bucket'), model: 'tiny', backend: referenceBackend() })
 */
export type { Backend, BackendFactory } from './backends/backend.ts'
export { createEngine, type Engine, type EngineOptions } from './engine.ts'
export { type ErrorCode, SparsedgeError } from './errors.ts'
export type { Manifest } from './pack/manifest.ts'
export type {
  ChatMessage,
  ExpertOptions,
  ExpertSelection,
  FinishReason,
  GenerateEvent,
  GenerateRequest,
  GenerateUsage,
  Prompt,
  SamplingParams,
} from './request.ts'
export { GREEDY } from './request.ts'
export type { ResidencySnapshot, WarmUp, WarmUpLimits } from './residency/residency.ts'
export type { ShardStore } from './store/store.ts'
