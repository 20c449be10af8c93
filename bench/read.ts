/**
 * @module
 * AssemblyScript: reads memory as fast as WebAssembly can, and does nothing else. What a kernel that must read every weight
 * once cannot beat on this machine.
 */

/** Reads `bytes` (a multiple of 512) from one place on: what the kernels do. */
export function oneStream(from: usize, bytes: usize): i32 {
  return streams(from, bytes, 32)
}

/** The same bytes from four places at once, which some machines prefetch better. */
export function fourStreams(from: usize, bytes: usize): i32 {
  return streams(from, bytes >>> 2, bytes >>> 2)
}

/** Eight loads a turn: two neighbours from each of four places that are `apart` bytes from each other. */
function streams(from: usize, bytes: usize, apart: usize): i32 {
  const step: usize = apart === 32 ? 128 : 32
  const end = from + bytes
  let a = i32x4.splat(0)
  let b = a
  let c = a
  let d = a
  while (from < end) {
    a = v128.xor(a, v128.xor(v128.load(from), v128.load(from, 16)))
    let at = from + apart
    b = v128.xor(b, v128.xor(v128.load(at), v128.load(at, 16)))
    at += apart
    c = v128.xor(c, v128.xor(v128.load(at), v128.load(at, 16)))
    at += apart
    d = v128.xor(d, v128.xor(v128.load(at), v128.load(at, 16)))
    from += step
  }
  return i32x4.extract_lane(v128.xor(v128.xor(a, b), v128.xor(c, d)), 0)
}
