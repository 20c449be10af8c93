import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { ropeFrequencies } from '@sparsedge/engine/model/rope'
import { tensorNames } from '@sparsedge/engine/model/weights'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { tinyTokenizer } from '../../../test/fixtures/tiny-tokenizer.ts'
import { openCheckpoint } from './open.ts'

const ARCH = {
  layers: 1,
  d_model: 32,
  heads: 2,
  kv_heads: 1,
  head_dim: 16,
  experts: 2,
  expert_units: 32,
  vocab: 40,
  tied_embedding: true,
  rope_theta: 100,
  rmsnorm_eps: 1e-5,
  trained_context: 64,
}
const measured = { ppl: 8, kl: 0.3, share: 0.5 }
const CONFIG = {
  name: 'first',
  arch: ARCH,
  int4: { value: '(nibble-8)*scale' },
  lookahead: true,
  measured_int4: { val_text: measured, val_chat: { ...measured, ppl: 5 }, docs: { ...measured, ppl: 16 } },
}

/** Rows of each matrix in int4 parts, and its columns. */
const MATRICES: Record<string, [number, number]> = {
  embed: [40, 32],
  'layers.0.attn_q': [32, 32],
  'layers.0.attn_kv': [32, 32],
  'layers.0.attn_o': [32, 32],
  'layers.0.ffn_gate_up': [128, 32],
  'layers.0.ffn_down': [32, 64],
}
const VECTORS: Record<string, number[]> = {
  'layers.0.attn_norm': [32],
  'layers.0.ffn_norm': [32],
  'layers.0.router.weight': [2, 32],
  'layers.0.router.bias': [2],
  norm: [32],
}

let directory: string
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'first-'))
  await writeFile(join(directory, 'config.json'), JSON.stringify(CONFIG))
  await writeFile(join(directory, 'tokenizer.json'), JSON.stringify(tinyTokenizer()))
  await writeTensors()
})
afterEach(() => rm(directory, { recursive: true }))

/** Code of row r, column c: (r + 3c) mod 16. Scale of row r: 2^-4, negative in odd rows (bfloat16 0x3d80, 0xbd80). */
async function writeTensors(shapes = MATRICES): Promise<void> {
  const header: Record<string, unknown> = {}
  const parts: Buffer[] = []
  let end = 0
  const add = (name: string, dtype: string, shape: number[], bytes: Buffer) => {
    header[name] = { dtype, shape, data_offsets: [end, end + bytes.length] }
    end += bytes.length
    parts.push(bytes)
  }
  for (const [name, [rows, cols]] of Object.entries(shapes)) {
    const codes = Buffer.alloc((rows * cols) / 2)
    for (let row = 0; row < rows; row++) {
      for (let col = 0; col < cols; col += 2) {
        codes[(row * cols + col) / 2] = code(row, col) | (code(row, col + 1) << 4)
      }
    }
    add(`${name}.q`, 'U8', [rows, cols / 2], codes)
    const blocks = cols / 32
    const scales = Buffer.alloc(rows * blocks * 2)
    for (let i = 0; i < rows * blocks; i++) {
      scales.writeUInt16LE(Math.floor(i / blocks) % 2 === 0 ? 0x3d80 : 0xbd80, 2 * i)
    }
    add(`${name}.s`, 'BF16', [rows, blocks], scales)
  }
  for (const [name, shape] of Object.entries(VECTORS)) {
    const size = shape.reduce((product, n) => product * n, 1)
    const bytes = Buffer.alloc(4 * size)
    for (let i = 0; i < size; i++) bytes.writeFloatLE(i / 8, 4 * i)
    add(name, 'F32', shape, bytes)
  }
  const text = Buffer.from(JSON.stringify(header))
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(text.length))
  await writeFile(join(directory, 'model.safetensors'), Buffer.concat([length, text, ...parts]))
}

const code = (row: number, col: number) => (row + 3 * col) % 16
const weight = (row: number, col: number) => (code(row, col) - 8) * (row % 2 === 0 ? 1 : -1) * 2 ** -4

describe('the first checkpoint', () => {
  it('is read under the canonical names', async () => {
    const checkpoint = await openCheckpoint(directory)
    const { weights } = checkpoint
    expect(weights.config).toMatchObject({
      hidden: 32,
      experts: 2,
      expertUnits: 32,
      sharedUnits: 0,
      gate: { kind: 'clamped_linear', source: 'previous', selection: { by: 'positive' } },
      eosTokens: [0, 2],
    })
    /** Row in the file's matrix of the first row here. */
    const starts: Record<string, number> = { 'self_attn.v_proj': 16, 'mlp.up_proj': 64 }
    for (const name of tensorNames(weights.config)) {
      const { shape, data } = await weights.tensor(name)
      if (shape.length === 2 && !name.includes('router')) {
        const part = name.replace(/^model\.layers\.0\.|\.weight$/g, '')
        const start = starts[part] ?? 0
        const expected = Float32Array.from(data, (_, i) =>
          weight(start + Math.floor(i / shape[1]), i % shape[1]),
        )
        expect(data, name).toEqual(expected)
      } else if (name === 'rope.inv_freq') {
        expect(data).toEqual(ropeFrequencies({ theta: 100, headDim: 16 }).invFreq)
      } else {
        expect(data, name).toEqual(Float32Array.from(data, (_, i) => i / 8))
      }
    }
    await checkpoint.close()
  })

  it('brings its measurements and ChatML', async () => {
    const { quality, text, close } = await openCheckpoint(directory)
    await close()
    expect(quality).toEqual([
      { share: 0.5, text: 'text', perplexity: 8, kl: 0.3 },
      { share: 0.5, text: 'chat', perplexity: 5, kl: 0.3 },
      { share: 0.5, text: 'docs', perplexity: 16, kl: 0.3 },
    ])
    expect(new TextDecoder().decode(text.chatTemplate)).toContain('<|im_start|>assistant')
  })

  it('with parts that do not fit its config.json is refused', async () => {
    await writeTensors({ ...MATRICES, embed: [39, 32] })
    const checkpoint = await openCheckpoint(directory)
    await expect(checkpoint.weights.tensor('model.embed_tokens.weight')).rejects.toMatchObject({
      code: 'checkpoint_malformed',
      message: expect.stringContaining('model.embed_tokens.weight'),
    })
    await expect(checkpoint.weights.tensor('lm_head.weight')).rejects.toMatchObject({
      code: 'checkpoint_malformed',
    })
    await checkpoint.close()
  })
})
