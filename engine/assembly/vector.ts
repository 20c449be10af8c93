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

/**
 * e^x in four lanes, within 2 ulp; 0 below -87, where a float loses its bits. x must not exceed 88.
 * Cephes: x = n ln 2 + r, |r| <= ln 2 / 2, e^r by a polynomial, 2^n by adding n to the exponent.
 */
export function exp4(x: v128): v128 {
  const inRange = f32x4.ge(x, f32x4.splat(-87))
  x = f32x4.max(x, f32x4.splat(-87))
  const n = f32x4.nearest(f32x4.mul(x, f32x4.splat(1.44269504088896341)))
  let r = f32x4.sub(x, f32x4.mul(n, f32x4.splat(0.693359375)))
  r = f32x4.sub(r, f32x4.mul(n, f32x4.splat(-2.1219444e-4)))
  let p = f32x4.splat(1.98756915e-4)
  p = f32x4.add(f32x4.mul(p, r), f32x4.splat(1.3981999507e-3))
  p = f32x4.add(f32x4.mul(p, r), f32x4.splat(8.3334519073e-3))
  p = f32x4.add(f32x4.mul(p, r), f32x4.splat(4.1665795894e-2))
  p = f32x4.add(f32x4.mul(p, r), f32x4.splat(1.6666665459e-1))
  p = f32x4.add(f32x4.mul(p, r), f32x4.splat(5.0000001201e-1))
  p = f32x4.add(f32x4.add(f32x4.mul(f32x4.mul(p, r), r), r), f32x4.splat(1))
  const power = i32x4.shl(i32x4.add(i32x4.trunc_sat_f32x4_s(n), i32x4.splat(127)), 23)
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
