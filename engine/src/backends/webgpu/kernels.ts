/**
 * @module
 * The kernels of one token's step, as WGSL: six a layer. What a model's shapes say is written into the code; what differs
 * between layers is bound.
 *
 * A row of a matrix belongs to 32 lanes. Each takes every 32nd word of four codes, so that lanes beside each other read
 * words beside each other, and the lanes' sums are added in a fixed order: the same weights give the same bits, always.
 */
import type { ModelConfig } from '../../model/config.ts'
import { BLOCK } from '../../pack/layout.ts'
import type { GpuMatrix } from './unpack.ts'

/** Lanes of a row, rows of a workgroup, and workgroups side by side before the next row of them. */
const LANES = 32
export const ROWS = 4
export const GRID = 32768
/** Lanes of a workgroup that has nothing to do with rows. */
export const WIDE = 256

type Shape = Pick<GpuMatrix, 'rows' | 'blocks' | 'planes'>

/** Declares what is bound, in this order: `name: type` is read, `name!: type` written too, `name?: type` a uniform. */
export function bindings(...declared: readonly string[]): string {
  return declared
    .map((text, i) => {
      const space = text.includes('!:')
        ? 'storage, read_write'
        : text.includes('?:')
          ? 'uniform'
          : 'storage, read'
      return `@group(0) @binding(${i}) var<${space}> ${text.replace(/[!?]:/, ':')};`
    })
    .join('\n')
}

/** Adds `value` of all lanes of a row; every lane gets the sum. */
const reduce = (type: string, width: number, lanes = LANES) => /* wgsl */ `
var<workgroup> partial: array<${type}, ${width}>;
fn sumOfLanes(value: ${type}, index: u32) -> ${type} {
  let lane = index % ${lanes};
  partial[index] = value;
  for (var half = ${lanes / 2}u; half > 0; half /= 2) {
    workgroupBarrier();
    if (lane < half) { partial[index] += partial[index + half]; }
  }
  workgroupBarrier();
  let sum = partial[index - lane];
  workgroupBarrier();
  return sum;
}`

const CODES = /* wgsl */ `
fn codesOf(word: u32) -> vec4f {
  return vec4f((vec4u(word) >> vec4u(0, 8, 16, 24)) & vec4u(255)) - 128;
}`

const words = ({ blocks }: Shape) => (blocks * BLOCK) / 4
/** Of the input, which every plane sees whole. */
const columns = (shape: Shape) => words(shape) / shape.planes

export const MAIN = (size: number) => /* wgsl */ `
@compute @workgroup_size(${size})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) index: u32)`

const ROW = /* wgsl */ `
  let lane = index % ${LANES};
  let row = (group.y * ${GRID} + group.x) * ${ROWS} + index / ${LANES};`

/** x = the row of a token. Bound: codes, scales, state, x. */
export function embed(shape: Shape): string {
  return /* wgsl */ `
${bindings('codes: array<u32>', 'scales: array<f32>', 'state: array<u32>', 'x!: array<vec4f>')}
${CODES}
${MAIN(WIDE)} {
  for (var i = index; i < ${columns(shape)}; i += ${WIDE}) {
    var sum = vec4f();
    for (var plane = 0u; plane < ${shape.planes}; plane++) {
      let at = state[0] * ${words(shape)} + plane * ${columns(shape)} + i;
      sum += scales[at / ${BLOCK / 4}] * codesOf(codes[at]);
    }
    x[i] = sum;
  }
}`
}

/** y = W norm(x). Bound: codes, scales, x, norm, y. */
export function normedProduct(shape: Shape, { normEps }: ModelConfig): string {
  return /* wgsl */ `
${bindings('codes: array<u32>', 'scales: array<f32>', 'x: array<vec4f>', 'norm: array<vec4f>', 'y!: array<f32>')}
${CODES}
${reduce('vec2f', ROWS * LANES)}
${MAIN(ROWS * LANES)} {
${ROW}
  var sums = vec2f(); // of the product, of squares
  if (row < ${shape.rows}) {
    for (var i = lane; i < ${words(shape)}; i += ${LANES}) {
      let column = i % ${columns(shape)};
      let value = x[column];
      let at = row * ${words(shape)} + i;
      sums += vec2f(scales[at / ${BLOCK / 4}] * dot(codesOf(codes[at]), value * norm[column]), dot(value, value));
    }
  }
  sums = sumOfLanes(sums, index);
  let meanSquare = sums.y / ${4 * words(shape)};
  if (lane == 0 && row < ${shape.rows}) { y[row] = sums.x * inverseSqrt(meanSquare + ${normEps}); }
}`
}

/**
 * y += W x. Bound: codes, scales, x, y; and where columns are of experts also their gates and the first one's index:
 * what an expert that is off would add is not read.
 */
export function addedProduct(shape: Shape, expertUnits?: number): string {
  const gated = expertUnits !== undefined
  const more = gated ? ['gates: array<f32>', 'first?: vec4u'] : []
  const skip = gated ? `if (gates[first.x + column / ${expertUnits / 4}] == 0) { continue; }` : ''
  return /* wgsl */ `
${bindings('codes: array<u32>', 'scales: array<f32>', 'x: array<vec4f>', 'y!: array<f32>', ...more)}
${CODES}
${reduce('f32', ROWS * LANES)}
${MAIN(ROWS * LANES)} {
${ROW}
  var sum = 0.0;
  if (row < ${shape.rows}) {
    for (var i = lane; i < ${words(shape)}; i += ${LANES}) {
      let column = i % ${columns(shape)};
      ${skip}
      let at = row * ${words(shape)} + i;
      sum += scales[at / ${BLOCK / 4}] * dot(codesOf(codes[at]), x[column]);
    }
  }
  sum = sumOfLanes(sum, index);
  if (lane == 0 && row < ${shape.rows}) { y[row] += sum; }
}`
}

/**
 * y = silu(W norm(x)) · (V norm(x)), times the expert's gate where rows are of experts. Bound: codes and scales of W and of
 * V, x, norm, y; then gates and the first one's index. The weights of an expert that is off are not read.
 */
export function units(shape: Shape, { normEps }: ModelConfig, expertUnits?: number): string {
  const gated = expertUnits !== undefined
  const more = gated ? ['gates: array<f32>', 'first?: vec4u'] : []
  return /* wgsl */ `
${bindings(
  'gateCodes: array<u32>',
  'gateScales: array<f32>',
  'upCodes: array<u32>',
  'upScales: array<f32>',
  'x: array<vec4f>',
  'norm: array<vec4f>',
  'y!: array<f32>',
  ...more,
)}
${CODES}
${reduce('vec3f', ROWS * LANES)}
${MAIN(ROWS * LANES)} {
${ROW}
  var weight = 1.0;
  var end = 0u;
  if (row < ${shape.rows}) {
    ${gated ? `weight = gates[first.x + row / ${expertUnits}];` : ''}
    end = select(${words(shape)}u, 0u, weight == 0);
  }
  var sums = vec3f(); // of W's product, of V's, of squares
  for (var i = lane; i < end; i += ${LANES}) {
    let column = i % ${columns(shape)};
    let value = x[column];
    let normed = value * norm[column];
    let at = row * ${words(shape)} + i;
    let block = at / ${BLOCK / 4};
    sums += vec3f(
      gateScales[block] * dot(codesOf(gateCodes[at]), normed),
      upScales[block] * dot(codesOf(upCodes[at]), normed),
      dot(value, value),
    );
  }
  sums = sumOfLanes(sums, index);
  let products = sums.xy * inverseSqrt(sums.z / ${4 * words(shape)} + ${normEps});
  if (lane == 0 && row < ${shape.rows}) {
    let unit = weight * products.x * products.y / (1 + exp(-products.x));
    y[row] = select(unit, 0.0, weight == 0);
  }
}`
}

/**
 * Gates of a layer, as model/gate.ts defines them, in one workgroup. Bound: router, x, norm, gates, the first one's index,
 * the request's rule; and for a softmax the bias and room for z, [experts].
 */
export function gate({ hidden, experts, normEps, gate: { kind, selection } }: ModelConfig): string {
  const softmax = kind !== 'clamped_linear'
  const kept = selection.by === 'top_k' ? 'before < rule[0]' : `${experts} * p > rule[0]`
  const rows = WIDE / LANES
  const decide = /* wgsl */ `
  var most = z[0];
  for (var e = 1u; e < ${experts}; e++) { most = max(most, z[e]); }
  var sum = 0.0;
  for (var e = 0u; e < ${experts}; e++) { sum += exp(z[e] - most); }
  for (var e = index; e < ${experts}; e += ${WIDE}) {
    let p = exp(z[e] - most) / sum;
    var before = 0.0;
    for (var o = 0u; o < ${experts}; o++) { if (z[o] > z[e] || (z[o] == z[e] && o < e)) { before += 1; } }
    gates[first.x + e] = select(0.0, p, ${kept});
  }`
  const renormalise = /* wgsl */ `
  storageBarrier();
  var whole = 0.0;
  for (var e = 0u; e < ${experts}; e++) { whole += gates[first.x + e]; }
  storageBarrier();
  if (whole > 0) { for (var e = index; e < ${experts}; e += ${WIDE}) { gates[first.x + e] /= whole; } }`
  return /* wgsl */ `
${bindings(
  'router: array<vec4f>',
  'x: array<vec4f>',
  'norm: array<vec4f>',
  'gates!: array<f32>',
  'first?: vec4u',
  'rule: array<f32>',
  ...(softmax ? ['bias: array<f32>', 'z!: array<f32>'] : []),
)}
${reduce('vec2f', WIDE)}
${MAIN(WIDE)} {
  let lane = index % ${LANES};
  for (var base = 0u; base < ${experts}; base += ${rows}) {
    let expert = base + index / ${LANES};
    var sums = vec2f(); // of the product, of squares
    if (expert < ${experts}) {
      for (var i = lane; i < ${hidden / 4}; i += ${LANES}) {
        let value = x[i];
        sums += vec2f(dot(router[expert * ${hidden / 4} + i], value * norm[i]), dot(value, value));
      }
    }
    sums = sumOfLanes(sums, index);
    if (lane == 0 && expert < ${experts}) {
      let score = sums.x * inverseSqrt(sums.y / ${hidden} + ${normEps});
      ${softmax ? 'z[expert] = score + bias[expert];' : 'gates[first.x + expert] = clamp(score + rule[expert], 0, 1);'}
    }
  }
  ${softmax ? `storageBarrier();${decide}` : ''}
  ${kind === 'softmax_renormalised' ? renormalise : ''}
}`
}
