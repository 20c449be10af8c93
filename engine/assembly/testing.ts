/**
 * @module
 * Entry point of the kernels' unit tests (src/backends/wasm/kernels.test.ts): what index.ts keeps to itself.
 */
import { probe, useDot } from './dot.ts'
import { bind, model } from './model.ts'
import { multiply } from './multiply.ts'
import { normalise, quantise, RECORD } from './record.ts'
import { listToken, multiplySeveral } from './several.ts'
import { exp4 } from './vector.ts'

/** to[i] = e^from[i] for `count` floats, a multiple of 4. */
function exponentials(from: usize, to: usize, count: i32): void {
  for (let i: usize = 0; i < (<usize>count) << 2; i += 16) v128.store(to + i, exp4(v128.load(from + i)))
}

/** Binds a model that has nothing but room for lists of terms and of tokens. */
function bindLists(address: usize, terms: usize, batch: usize): void {
  bind(address)
  model.terms = terms
  model.batch = batch
}

function recordSize(): i32 {
  return <i32>RECORD
}

export { bindLists, exponentials, listToken, multiply, multiplySeveral, normalise, probe, quantise, recordSize, useDot }
