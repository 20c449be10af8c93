import asc from 'assemblyscript/asc'
import { describe, expect, it } from 'vitest'
import { compile } from '../../../assembly/build.ts'
import { selectKernels, supportsRelaxedSimd } from './select.ts'

const memory = new WebAssembly.Memory({ initial: 1 })
const plain = new WebAssembly.Module(await compile('plain'))
const relaxed = new WebAssembly.Module(await compile('relaxed'))

/** A build of the kernels in a runtime whose relaxed dot product gives `value`. */
async function relaxedGiving(value: number): Promise<WebAssembly.Module> {
  const names = ['bind', 'begin', 'attention', 'ffnInput', 'gate', 'restrict', 'experts', 'head', 'weigh']
  const source = [
    ...names.map((name) => `export function ${name}(): void {}`),
    `export function probe(): i32 { return ${value} }`,
    'let way = -1',
    'export function useDot(chosen: i32): void { way = chosen }',
    'export function gotWay(): i32 { return way }',
  ]
  const { binary, stderr } = await asc.compileString(source.join('\n'), {
    runtime: 'stub',
    importMemory: true,
  })
  if (!binary) throw new Error(String(stderr))
  return new WebAssembly.Module(new Uint8Array(binary))
}

describe('selectKernels', () => {
  it('takes the relaxed build where this runtime has relaxed SIMD, and it works', () => {
    expect(supportsRelaxedSimd()).toBe(true)
    expect(selectKernels({ plain, relaxed }, memory).name).toBe('wasm-relaxed')
  })

  it('takes the plain build where there is no other', () => {
    expect(selectKernels({ plain }, memory).name).toBe('wasm-plain')
  })

  it.each([
    ['AVX-VNNI', 129540, 2],
    ['ARM dot product', -508, 1],
    ['SSSE3', 65534, 0],
  ])('forms integers as %s does best', async (_, value, way) => {
    const module = await relaxedGiving(value)
    const { name, kernels } = selectKernels({ plain, relaxed: module }, memory)
    expect(name).toBe('wasm-relaxed')
    expect(kernels).toHaveProperty('gotWay')
    expect(Reflect.get(kernels, 'gotWay')()).toBe(way)
  })

  it.each([131068, 0, 1])(
    'takes the plain build where a dot product gives %i, which is wrong',
    async (value) => {
      const module = await relaxedGiving(value)
      expect(selectKernels({ plain, relaxed: module }, memory).name).toBe('wasm-plain')
    },
  )

  it('refuses a module that is not ours', async () => {
    const { binary } = await asc.compileString('export function bind(): void {}', { runtime: 'stub' })
    const other = new WebAssembly.Module(new Uint8Array(binary ?? []))
    expect(() => selectKernels({ plain: other }, memory)).toThrow(
      expect.objectContaining({ code: 'backend_unavailable' }),
    )
  })
})
