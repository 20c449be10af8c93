/**
 * @module
 * How the two builds form the integers of a block: Σ q·code over 32 columns, for four rows in the four lanes of a
 * vector. All of them are exact, so that which way a machine takes never shows in a result.
 */

/**
 * How the relaxed module forms integers. Every way is exact for the operands that it is given; which ones a machine allows,
 * and which is fast there, the host finds out (src/backends/wasm/select.ts). A relaxed dot product of four bytes a lane is
 *
 * 0 three instructions, so that pairs in 16-bit lanes are better (T = i16 below);
 * 1 one instruction, if the top bit of its second operand is not set (T = i32): ARM's dot product;
 * 2 one instruction whose second operand is unsigned (T = u32): AVX-VNNI.
 */
let way: i32 = 0

/**
 * Relaxed module: what this machine makes of a dot product whose second operand has its top bit set, which the
 * specification leaves open. The value tells which instruction is behind it; 0, that pairs, which it does not leave open,
 * come out wrong: V8's first compiler multiplies the second operand by itself where a machine has no AVX.
 */
export function probe(): i32 {
  if (!ASC_FEATURE_RELAXED_SIMD) return 0
  // Bytes of -16 and of 15, from memory: the compiler of this module would form a product of constants itself.
  const pairs = i16x8.relaxed_dot_i8x16_i7x16_s(highMask<u32>(), mask0())
  if (i16x8.extract_lane_s(pairs, 0) !== 2 * -16 * 15) return 0
  return i32x4.extract_lane(
    i32x4.relaxed_dot_i8x16_i7x16_add_s(i8x16.splat(127), i8x16.splat(-1), i32x4.splat(0)),
    0,
  )
}

/** Relaxed module: chooses between the ways above. */
export function useDot(chosen: i32): void {
  way = chosen
}

/** Whether sums are formed of pairs. */
@inline
export function inPairs(): bool {
  return ASC_FEATURE_RELAXED_SIMD && way === 0
}

/** Whether weights may be any unsigned bytes. */
@inline
export function unsigned(): bool {
  return ASC_FEATURE_RELAXED_SIMD && way === 2
}

// A 16-byte vector of weights holds 4 rows x 8 columns: byte i of a row has column i in its low nibble and column 4 + i
// in its high one. It is taken in parts of 4 columns (relaxed) or 2 (plain), each against as many codes, in all lanes.
//
// Masks come from memory, once a kernel: V8 builds a vector constant anew, in three instructions, wherever one is used inside
// a loop, often even where a local holds it, but keeps what it has loaded in a register.
const MASKS = memory.data<u32>([0x000f000f, 0x00f000f0, 0x0f000f00, 0x0f0f0f0f, 0xf0f0f0f0])

/** The mask of the first part: relaxed, columns 0 to 3; plain, columns 0 and 2. */
@inline
export function mask0(): v128 {
  return ASC_FEATURE_RELAXED_SIMD ? v128.load32_splat(MASKS, 12) : v128.load32_splat(MASKS)
}

/** Plain: columns 4 and 6, which are worth 16 times themselves where they stand. */
@inline
export function mask1(): v128 {
  return v128.load32_splat(MASKS, 4)
}

/** Plain: columns 1 and 3, worth 256 times themselves. Columns 5 and 7 come by a shift. */
@inline
export function mask2(): v128 {
  return v128.load32_splat(MASKS, 8)
}

/** Relaxed: the mask of columns 4 to 7 where they stand or, but for T = u32, have been shifted to. */
@inline
export function highMask<T>(): v128 {
  return isSigned<T>() ? mask0() : v128.load32_splat(MASKS, 16)
}

/** Parts of a vector of weights, each to be multiplied by the next vector of codes. */
export const PARTS: usize = ASC_FEATURE_RELAXED_SIMD ? 2 : 4

@inline
export function part0(weights: v128, mask0: v128): v128 {
  return v128.and(weights, mask0)
}

@inline
export function part1(weights: v128, mask0: v128, mask1: v128): v128 {
  if (ASC_FEATURE_RELAXED_SIMD) return v128.and(i16x8.shr_u(weights, 4), mask0)
  return v128.and(weights, mask1)
}

/** Plain. */
@inline
export function part2(weights: v128, mask2: v128): v128 {
  return v128.and(weights, mask2)
}

/** Plain. */
@inline
export function part3(weights: v128): v128 {
  return i16x8.shr_u(weights, 12)
}

/** Relaxed: part · codes, with which a sum begins. */
@inline
export function start<T>(part: v128, codes: v128): v128 {
  // But for T = u32 the second operand is below 128: the one case in which all machines agree.
  if (sizeof<T>() === 4) return i32x4.relaxed_dot_i8x16_i7x16_add_s(codes, part, i32x4.splat(0))
  return i16x8.relaxed_dot_i8x16_i7x16_s(codes, part)
}

/** sum + part · codes. The sums of 16-bit lanes stay below 16 · 15 · 127 = 30480 over a block, so they cannot overflow. */
@inline
export function add<T>(sum: v128, part: v128, codes: v128): v128 {
  if (ASC_FEATURE_RELAXED_SIMD) {
    if (sizeof<T>() === 4) return i32x4.relaxed_dot_i8x16_i7x16_add_s(codes, part, sum)
    return i16x8.add(sum, start<T>(part, codes))
  }
  return i32x4.add(sum, i32x4.dot_i16x8_s(part, codes))
}

// For a single token, whose weights are unpacked for it alone, a block of unsigned quads has two sums, of columns 0 to 3 and
// of columns 4 to 7, the latter 16 times its worth: that takes a mask where the others take a shift and a mask. The others
// have one sum, which goes from `low` to `high` and back.

/** Relaxed: columns 0 to 3 of a vector of weights · their codes, with which `low` begins. */
@inline
export function startLow<T>(weights: v128, x0: v128, mask0: v128): v128 {
  return start<T>(part0(weights, mask0), x0)
}

/** Relaxed: columns 4 to 7, with which `high` begins. */
@inline
export function startHigh<T>(low: v128, weights: v128, x1: v128, highMask: v128): v128 {
  const part = highPart<T>(weights, highMask)
  return isSigned<T>() ? add<T>(low, part, x1) : start<T>(part, x1)
}

/** Relaxed: `low` with columns 0 to 3. */
@inline
export function addLow<T>(low: v128, high: v128, weights: v128, x0: v128, mask0: v128): v128 {
  return add<T>(isSigned<T>() ? high : low, part0(weights, mask0), x0)
}

/** Relaxed: `high` with columns 4 to 7. */
@inline
export function addHigh<T>(low: v128, high: v128, weights: v128, x1: v128, highMask: v128): v128 {
  return add<T>(isSigned<T>() ? low : high, highPart<T>(weights, highMask), x1)
}

@inline
function highPart<T>(weights: v128, highMask: v128): v128 {
  return v128.and(isSigned<T>() ? i16x8.shr_u(weights, 4) : weights, highMask)
}

/** Relaxed: the sum of all columns. */
@inline
export function joined<T>(low: v128, high: v128): v128 {
  return isSigned<T>() ? high : i32x4.add(low, i32x4.shr_s(high, 4))
}

// With the block's scales s and zero points z of eight rows as i16x8, s · (8 Σ q·code - z · Σ code) of four of them is
// scaled(sum, factors) - Σ code · products. Several tokens with the same s and z share the making of factors and products.

/** What turns a sum of rows 0 to 3 (or 4 to 7) into 8 s Σ q·code. */
@inline
export function factors<T>(s: v128, high: bool): v128 {
  if (ASC_FEATURE_RELAXED_SIMD && sizeof<T>() === 2) {
    // 8 s for each of a row's two 16-bit sums.
    const eightfold = i16x8.shl(s, 3)
    if (high) return v128.shuffle<i16>(eightfold, eightfold, 4, 4, 5, 5, 6, 6, 7, 7)
    return v128.shuffle<i16>(eightfold, eightfold, 0, 0, 1, 1, 2, 2, 3, 3)
  }
  // The plain module's sums are 256 times their worth already; see scaled.
  const factor = ASC_FEATURE_RELAXED_SIMD ? i16x8.shl(s, 3) : s
  return high ? i32x4.extend_high_i16x8_u(factor) : i32x4.extend_low_i16x8_u(factor)
}

@inline
function scaled<T>(sum: v128, factor: v128): v128 {
  if (ASC_FEATURE_RELAXED_SIMD && sizeof<T>() === 2) return i32x4.dot_i16x8_s(sum, factor)
  return i32x4.mul(ASC_FEATURE_RELAXED_SIMD ? sum : i32x4.shr_s(sum, 5), factor)
}

/** s · z of rows 0 to 3 (or 4 to 7), from the products of all eight, which fit 16 unsigned bits. */
@inline
export function products(sz: v128, high: bool): v128 {
  return high ? i32x4.extend_high_i16x8_u(sz) : i32x4.extend_low_i16x8_u(sz)
}

/** y + scale · (s · (8 Σ q·code - z · Σ code)) for four rows. */
@inline
export function settle<T>(y: v128, sum: v128, factor: v128, product: v128, codeSum: v128, scale: v128): v128 {
  const level = i32x4.sub(scaled<T>(sum, factor), i32x4.mul(codeSum, product))
  return f32x4.add(y, f32x4.mul(scale, f32x4.convert_i32x4_s(level)))
}

/**
 * out[8] += a block: scale · (s · (8 Σ q·code - z · Σ code)) of eight rows.
 *
 * @param low sums of rows 0 to 3, `high` of rows 4 to 7
 * @param s scales of all eight as i16x8, `sz` the same times their zero points
 */
@inline
export function settleRows<T>(
  out: usize,
  low: v128,
  high: v128,
  s: v128,
  sz: v128,
  codeSum: v128,
  scale: v128,
): void {
  const y0 = v128.load(out)
  v128.store(out, settle<T>(y0, low, factors<T>(s, false), products(sz, false), codeSum, scale))
  const y1 = v128.load(out, 16)
  v128.store(out, settle<T>(y1, high, factors<T>(s, true), products(sz, true), codeSum, scale), 16)
}
