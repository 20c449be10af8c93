/**
 * @module
 * Number formats of checkpoints → float32, all little-endian.
 */

/** IEEE 754 half precision. */
export function halfToFloat(half: number): number {
  const sign = half & 0x8000 ? -1 : 1
  const exponent = (half >> 10) & 31
  const fraction = half & 1023
  if (exponent === 0) return sign * fraction * 2 ** -24
  if (exponent === 31) return fraction === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15)
}

export function floatsFromF16(bytes: Uint8Array): Float32Array {
  const view = viewOf(bytes)
  return Float32Array.from({ length: bytes.length / 2 }, (_, i) => halfToFloat(view.getUint16(2 * i, true)))
}

/** bfloat16: the upper half of a float32. */
export function floatsFromBF16(bytes: Uint8Array): Float32Array {
  const view = viewOf(bytes)
  const words = Uint32Array.from({ length: bytes.length / 2 }, (_, i) => view.getUint16(2 * i, true) << 16)
  return new Float32Array(words.buffer)
}

export function floatsFromF32(bytes: Uint8Array): Float32Array {
  const view = viewOf(bytes)
  return Float32Array.from({ length: bytes.length / 4 }, (_, i) => view.getFloat32(4 * i, true))
}

export function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
}

/** The nearest half, ties to even; infinite where the number is too large for one. */
export function floatToHalf(value: number): number {
  const sign = value < 0 || Object.is(value, -0) ? 0x8000 : 0
  const magnitude = Math.abs(value)
  // Halves below 2^-14 are whole multiples of 2^-24, others of 2^-10 of their power of two.
  const exponent = Math.max(Math.floor(Math.log2(magnitude)), -14)
  const fraction = roundToEven(magnitude * 2 ** (10 - exponent))
  // A fraction that rounds up to the next power of two carries into the exponent by itself.
  return sign | Math.min(fraction + (exponent + 14) * 1024, 0x7c00)
}

function roundToEven(value: number): number {
  const below = Math.floor(value)
  const rest = value - below
  return rest > 0.5 || (rest === 0.5 && below % 2 === 1) ? below + 1 : below
}
