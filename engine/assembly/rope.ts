/**
 * @module
 * Rotary position embeddings. Angles are computed here in float64, by AssemblyScript's own sine and cosine, because the
 * host's differ between engines.
 */
import { model } from './model.ts'

/** Cosines, then sines, of the angles at `position`, times the model's ropeScale: f32 [2, headDim / 2]. */
export function writeAngles(position: i32, to: usize): void {
  const half = model.headDim >>> 1
  const sines = to + ((<usize>half) << 2)
  for (let i = 0; i < half; i++) {
    const at = (<usize>i) << 2
    const angle = <f64>position * <f64>load<f32>(model.invFreq + at)
    store<f32>(to + at, <f32>NativeMath.cos(angle) * model.ropeScale)
    store<f32>(sines + at, <f32>NativeMath.sin(angle) * model.ropeScale)
  }
}

/**
 * Rotates heads in place: (a, b) -> (a cos - b sin, b cos + a sin), where a is the first half of a head and b the
 * second.
 *
 * @param heads f32 [count, headDim]
 */
export function rotate(heads: usize, count: i32, angles: usize): void {
  const half = (<usize>model.headDim) << 1 // bytes of half a head
  do {
    for (let i: usize = 0; i < half; i += 16) {
      const cos = v128.load(angles + i)
      const sin = v128.load(angles + half + i)
      const a = v128.load(heads + i)
      const b = v128.load(heads + half + i)
      v128.store(heads + i, f32x4.sub(f32x4.mul(a, cos), f32x4.mul(b, sin)))
      v128.store(heads + half + i, f32x4.add(f32x4.mul(b, cos), f32x4.mul(a, sin)))
    }
    heads += half << 1
  } while (--count)
}
