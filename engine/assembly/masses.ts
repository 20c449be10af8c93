/**
 * @module
 * What all tokens weigh, for the sampler: `Runs.weigh` of src/backends/backend.ts, two tokens at a time. Its e^x is the one of
 * src/sampling/exp.ts, operation by operation, so that the bits are the same.
 */
import { model } from './model.ts'

/**
 * Constants of {@link expOf}, each twice: V8 would build one anew at each use. Where e^x is 0, log₂ e, ln 2, 1/2!; 2^52, then
 * 1/7! to 1/3!, then 1.
 */
const EXP = memory.data<f64>([
  -43.6, -43.6, 1.4426950408889634, 1.4426950408889634, 0.6931471805599453, 0.6931471805599453, 0.5, 0.5,
  4503599627370496, 4503599627370496, 0.0001984126984126984, 0.0001984126984126984, 0.001388888888888889,
  0.001388888888888889, 0.008333333333333333, 0.008333333333333333, 0.041666666666666664, 0.041666666666666664,
  0.16666666666666666, 0.16666666666666666, 1, 1,
])

/** model.masses[run] = Σ e^((logit - top) / temperature) over the logits from `floor` on, up to the end of the run. */
export function weigh(floor: f64, top: f64, temperature: f64): void {
  const floors = f64x2.splat(floor)
  const tops = f64x2.splat(top)
  const temperatures = f64x2.splat(temperature)
  let logits = model.logits
  let peak = model.peaks
  let mass = model.masses
  const end = peak + ((<usize>((model.vocab + 15) >>> 4)) << 2)
  let sum: f64 = 0
  while (peak < end) {
    if (<f64>load<f32>(peak) >= floor) {
      for (let i: usize = 0; i < 64; i += 8) {
        const pair = f64x2.promote_low_f32x4(v128.load64_zero(logits + i))
        const weights = v128.and(
          expOf(f64x2.div(f64x2.sub(pair, tops), temperatures)),
          f64x2.ge(pair, floors),
        )
        sum += f64x2.extract_lane(weights, 0)
        sum += f64x2.extract_lane(weights, 1)
      }
    }
    store<f64>(mass, sum)
    logits += 64
    peak += 4
    mass += 8
  }
}

/** e^x = 2^-k · e^r for x <= 0; 0 where it is next to nothing. */
@inline
function expOf(x: v128): v128 {
  const half = v128.load(EXP, 48)
  const k = f64x2.floor(f64x2.sub(half, f64x2.mul(x, v128.load(EXP, 16))))
  const r = f64x2.add(x, f64x2.mul(k, v128.load(EXP, 32)))
  const s = f64x2.mul(r, r)
  const one = v128.load(EXP, 160)
  let p = f64x2.add(v128.load(EXP, 96), f64x2.mul(r, v128.load(EXP, 80)))
  p = f64x2.add(f64x2.add(v128.load(EXP, 128), f64x2.mul(r, v128.load(EXP, 112))), f64x2.mul(s, p))
  p = f64x2.add(f64x2.add(half, f64x2.mul(r, v128.load(EXP, 144))), f64x2.mul(s, p))
  p = f64x2.add(f64x2.add(one, r), f64x2.mul(s, p))
  // The low bits of k + 2^52 are k; those of 1 are its exponent.
  const power = i64x2.sub(one, i64x2.shl(f64x2.add(k, v128.load(EXP, 64)), 52))
  return v128.and(f64x2.mul(p, power), f64x2.gt(x, v128.load(EXP)))
}
