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

@inline
export function maxLanes(v: v128): f32 {
  return max(
    max(f32x4.extract_lane(v, 0), f32x4.extract_lane(v, 1)),
    max(f32x4.extract_lane(v, 2), f32x4.extract_lane(v, 3)),
  )
}

/** Adding it to a float below 2^22 leaves the nearest integer (ties to even) in the low bits: 1.5 · 2^23. */
const ROUNDER: f32 = 12582912

/**
 * x · scale, rounded to the nearest integers, ties to even; |x · scale| < 2^22. Cheaper than nearest and trunc_sat.
 * `rounder` is {@link rounders}, kept in a local by the caller: V8 builds a constant anew wherever a loop uses one.
 */
@inline
export function toIntegers(x: v128, scale: v128, rounder: v128): v128 {
  return i32x4.sub(f32x4.add(f32x4.mul(x, scale), rounder), rounder)
}

@inline
export function rounders(): v128 {
  return f32x4.splat(ROUNDER)
}

/** Coefficients of {@link exp4}, in memory, whence each costs one instruction. */
const EXP = memory.data<f32>([
  -87,
  1.44269504088896341,
  ROUNDER,
  0.693359375,
  -2.1219444e-4,
  1.98756915e-4,
  1.3981999507e-3,
  8.3334519073e-3,
  4.1665795894e-2,
  1.6666665459e-1,
  5.0000001201e-1,
  1,
])

/**
 * e^x in four lanes, within 2 ulp; 0 below -87, where a float loses its bits. x must not exceed 88.
 * Cephes: x = n ln 2 + r, |r| <= ln 2 / 2, e^r by a polynomial, 2^n by adding n to the exponent.
 */
export function exp4(x: v128): v128 {
  const least = v128.load32_splat(EXP)
  const inRange = f32x4.ge(x, least)
  x = f32x4.pmax(x, least)
  const rounder = v128.load32_splat(EXP, 8)
  const rounded = f32x4.add(f32x4.mul(x, v128.load32_splat(EXP, 4)), rounder)
  const n = f32x4.sub(rounded, rounder)
  let r = f32x4.sub(x, f32x4.mul(n, v128.load32_splat(EXP, 12)))
  r = f32x4.sub(r, f32x4.mul(n, v128.load32_splat(EXP, 16)))
  let p = f32x4.add(f32x4.mul(v128.load32_splat(EXP, 20), r), v128.load32_splat(EXP, 24))
  p = f32x4.add(f32x4.mul(p, r), v128.load32_splat(EXP, 28))
  p = f32x4.add(f32x4.mul(p, r), v128.load32_splat(EXP, 32))
  p = f32x4.add(f32x4.mul(p, r), v128.load32_splat(EXP, 36))
  p = f32x4.add(f32x4.mul(p, r), v128.load32_splat(EXP, 40))
  const one = v128.load32_splat(EXP, 44)
  p = f32x4.add(f32x4.add(f32x4.mul(f32x4.mul(p, r), r), r), one)
  // The low bits of `rounded` are n; those of 1 are its exponent.
  const power = i32x4.add(i32x4.shl(rounded, 23), one)
  return v128.and(f32x4.mul(p, power), inRange)
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
