/**
 * @module
 * Small vector maths. Every runtime must give the same bits, so nothing here is a fused multiply-add, a host function or
 * a sum whose order depends on anything but its length.
 */

/** (a + b) + (c + d) of a vector's lanes. */
@inline
export function sumLanes(v: v128): f32 {
  return (
    f32x4.extract_lane(v, 0) +
    f32x4.extract_lane(v, 1) +
    (f32x4.extract_lane(v, 2) + f32x4.extract_lane(v, 3))
  )
}

/** On vectors, since V8 makes branches of the larger of two floats, which no machine can foresee. */
@inline
export function maxLanes(v: v128): f32 {
  const pairs = f32x4.max(v, v128.shuffle<f32>(v, v, 2, 3, 0, 1))
  return f32x4.extract_lane(f32x4.max(pairs, v128.shuffle<f32>(pairs, pairs, 1, 0, 3, 2)), 0)
}

/**
 * The larger of two magnitudes in each lane. Floats without a sign are ordered as their bits are, and a NaN lies above
 * all of them, so that it is never lost as `pmax` would lose it.
 */
@inline
export function largerMagnitudes(a: v128, b: v128): v128 {
  return i32x4.max_u(a, b)
}

/** What brings `top` to `peak`; 0 where no float does: where `top` is (almost) 0 or not finite. */
@inline
export function scaleTo(peak: f32, top: f32): f32 {
  const scale = peak / top
  return scale <= f32.MAX_VALUE ? scale : 0
}

/** Adding it to a float below 2^22 leaves the nearest integer (ties to even) in the low bits: 1.5 · 2^23. */
const ROUNDER: f32 = 12582912

/**
 * x · scale, rounded to the nearest integers, ties to even; |x · scale| < 2^22. Cheaper than nearest and trunc_sat.
 * `rounder` is {@link rounders}, kept in a local by the caller.
 */
@inline
export function toIntegers(x: v128, scale: v128, rounder: v128): v128 {
  return i32x4.sub(f32x4.add(f32x4.mul(x, scale), rounder), rounder)
}

/** Four of them, from memory: V8 builds a constant anew, in three instructions, at each use of even a local that holds it. */
@inline
export function rounders(): v128 {
  return v128.load(EXP, 32)
}

/**
 * Constants of {@link exp4}, each four times: from memory one costs a single instruction. 2^f = 1 + f (c1 + … + c5 f⁴) on
 * [-1/2, 1/2] is a minimax fit, within 1e-7.
 */
const EXP = memory.data<f32>([
  -50,
  -50,
  -50,
  -50,
  1.44269504,
  1.44269504,
  1.44269504,
  1.44269504,
  ROUNDER,
  ROUNDER,
  ROUNDER,
  ROUNDER,
  0.001326472615,
  0.001326472615,
  0.001326472615,
  0.001326472615,
  0.009671512991,
  0.009671512991,
  0.009671512991,
  0.009671512991,
  0.055507335812,
  0.055507335812,
  0.055507335812,
  0.055507335812,
  0.240222424269,
  0.240222424269,
  0.240222424269,
  0.240222424269,
  0.693147003651,
  0.693147003651,
  0.693147003651,
  0.693147003651,
  1,
  1,
  1,
  1,
])

/**
 * e^x in four lanes, within 5e-6 (1e-6 for |x| < 10); 0 below -50, so that no product with it ever leaves the normal
 * floats; NaN of NaN. x must not exceed 88. Computed as 2^n 2^f with n + f = x log₂ e.
 */
@inline
export function exp4(x: v128): v128 {
  const tooLow = f32x4.lt(x, v128.load(EXP))
  const t = f32x4.mul(f32x4.pmax(x, v128.load(EXP)), v128.load(EXP, 16))
  const rounder = rounders()
  const rounded = f32x4.add(t, rounder)
  const f = f32x4.sub(t, f32x4.sub(rounded, rounder))
  let p = f32x4.add(f32x4.mul(v128.load(EXP, 48), f), v128.load(EXP, 64))
  p = f32x4.add(f32x4.mul(p, f), v128.load(EXP, 80))
  p = f32x4.add(f32x4.mul(p, f), v128.load(EXP, 96))
  p = f32x4.add(f32x4.mul(p, f), v128.load(EXP, 112))
  const one = v128.load(EXP, 128)
  p = f32x4.add(f32x4.mul(p, f), one)
  // The low bits of `rounded` are n; those of 1 are its exponent.
  const power = i32x4.add(i32x4.shl(rounded, 23), one)
  return v128.andnot(f32x4.mul(p, power), tooLow)
}

/** Zeroes `bytes` bytes, a multiple of 16. */
export function clear(at: usize, bytes: usize): void {
  const end = at + bytes
  while (at < end) {
    v128.store(at, f32x4.splat(0))
    at += 16
  }
}

/** to[i] = from[i] · scales[i], `count` a multiple of 4. */
export function scaleRows(to: usize, from: usize, scales: usize, count: i32): void {
  const end = to + ((<usize>count) << 2)
  while (to < end) {
    v128.store(to, f32x4.mul(v128.load(from), v128.load(scales)))
    to += 16
    from += 16
    scales += 16
  }
}

/** to[i] += from[i] · scales[i], `count` a multiple of 4. */
export function addScaledRows(to: usize, from: usize, scales: usize, count: i32): void {
  const end = to + ((<usize>count) << 2)
  while (to < end) {
    v128.store(to, f32x4.add(v128.load(to), f32x4.mul(v128.load(from), v128.load(scales))))
    to += 16
    from += 16
    scales += 16
  }
}
