/**
 * @module
 * Which of the two builds of the kernels this machine runs. Both give the same bits; the relaxed one is faster where it
 * works.
 */
import { SparsedgeError } from '../../errors.ts'

/** The builds, compiled (dist/plain.wasm, dist/relaxed.wasm). */
export interface WasmModules {
  readonly plain: WebAssembly.Module
  /** Absent where the runtime cannot compile it, see {@link supportsRelaxedSimd}. */
  readonly relaxed?: WebAssembly.Module
}

/** The entry points of engine/assembly/index.ts. Addresses and counts are i32. */
export interface Kernels {
  bind(model: number): void
  begin(count: number, position: number): void
  attention(layer: number, count: number, position: number): void
  ffnInput(layer: number, count: number): void
  gate(layer: number, count: number): number
  restrict(layer: number, count: number): number
  experts(layer: number, count: number, routed: number): number
  head(token: number): void
  weigh(floor: number, top: number, temperature: number): void
  probe(): number
  useDot(way: number): void
}

const ENTRY_POINTS = [
  'bind',
  'begin',
  'attention',
  'ffnInput',
  'gate',
  'restrict',
  'experts',
  'head',
  'weigh',
  'probe',
  'useDot',
] as const satisfies (keyof Kernels)[]

/** Whether this runtime knows relaxed SIMD: what decides if dist/relaxed.wasm may be compiled at all. */
export function supportsRelaxedSimd(): boolean {
  return WebAssembly.validate(RELAXED_SWIZZLE)
}

/** A module of one function: i8x16.relaxed_swizzle(i8x16.splat(1), i8x16.splat(2)). */
const RELAXED_SWIZZLE = Uint8Array.of(
  ...[0, 97, 115, 109, 1, 0, 0, 0], // magic, version
  ...[1, 5, 1, 96, 0, 1, 123], // one type: () -> v128
  ...[3, 2, 1, 0], // one function of it
  ...[10, 15, 1, 13, 0, 65, 1, 253, 15, 65, 2, 253, 15, 253, 128, 2, 11],
)

/**
 * What a relaxed dot product of four bytes 127 and four bytes 0xff gives: the specification allows several answers, and
 * each tells which instruction gave it, and so the way to form integers (assembly/dot.ts). An answer that is not listed
 * means that the runtime miscompiles (Node 20 with its experimental flag does, and V8 where there is no AVX), and then the
 * plain build is taken.
 */
const DOT_PRODUCTS = new Map([
  [65534, 0], // saturated pairs: pmaddubsw, then two more instructions
  [-508, 1], // signed in one instruction: ARM's dot product
  [129540, 2], // unsigned times signed in one instruction: AVX-VNNI
])

/**
 * Instantiates the kernels on a memory.
 *
 * @throws SparsedgeError `backend_unavailable` if the modules are not ours
 */
export function selectKernels(
  modules: WasmModules,
  memory: WebAssembly.Memory,
): { readonly name: string; readonly kernels: Kernels } {
  if (modules.relaxed) {
    const kernels = instantiate(modules.relaxed, memory)
    const way = DOT_PRODUCTS.get(kernels.probe())
    if (way !== undefined) {
      kernels.useDot(way)
      return { name: 'wasm-relaxed', kernels }
    }
  }
  return { name: 'wasm-plain', kernels: instantiate(modules.plain, memory) }
}

function instantiate(module: WebAssembly.Module, memory: WebAssembly.Memory): Kernels {
  const abort = () => {
    throw new Error('a kernel aborted')
  }
  const { exports } = new WebAssembly.Instance(module, { env: { memory, abort } })
  for (const name of ENTRY_POINTS) {
    if (typeof exports[name] !== 'function') {
      throw new SparsedgeError(
        'backend_unavailable',
        `the WASM module has no ${name}; build the engine again`,
      )
    }
  }
  // The one cast: a module's exports carry no types, and wrapping each would cost a call.
  return exports as unknown as Kernels
}
