import { expect, it } from 'vitest'
import goldens from '../../../test/goldens/ggml-blocks.json' with { type: 'json' }
import { GGML_TYPES } from './gguf-blocks.ts'
import { floatsFromF32 } from './numbers.ts'

it.each(goldens)(
  'reads $name bit for bit as the Python package gguf does',
  ({ type, name, bytes, floats }) => {
    const known = GGML_TYPES.get(type)
    expect(known?.name).toBe(name)
    const raw = new Uint8Array(Buffer.from(bytes, 'hex'))
    expect(raw.length % (known?.blockBytes ?? 0)).toBe(0)
    const expected = floatsFromF32(new Uint8Array(Buffer.from(floats, 'hex')))
    expect(expected).toHaveLength((raw.length / (known?.blockBytes ?? 1)) * (known?.blockSize ?? 0))
    expect(known?.toFloats(raw)).toEqual(expected)
  },
)

it('covers every type', () => {
  expect([...GGML_TYPES.keys()].sort()).toEqual(goldens.map(({ type }) => type).sort())
})
