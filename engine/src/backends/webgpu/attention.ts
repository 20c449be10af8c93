/**
 * @module
 * The kernel of one token's attention: a workgroup for each query head.
 */
import type { ModelConfig } from '../../model/config.ts'
import { bindings, MAIN, WIDE } from './kernels.ts'

/** Of all lanes, into partial[0]. */
const combine = (how: string) => /* wgsl */ `
    for (var other = ${WIDE / 2}u; other > 0; other /= 2) {
      workgroupBarrier();
      if (index < other) { partial[index] = ${how}; }
    }
    workgroupBarrier();`

/**
 * A query head's attention, and its key head's new key and value into the cache. Numbers lie in quads, four of a head's
 * dimensions. Bound: qkv, state, rotation [positions, 2, headDim / 2] of cosines and sines, keys and values [kvHeads,
 * capacity, headDim], context.
 */
export function attention({ heads, kvHeads, headDim }: ModelConfig): string {
  const quads = headDim / 4
  // A lane adds up `each` quads of the values; where there are lanes to spare, some share the tokens.
  const across = Math.min(quads, WIDE)
  const each = Math.ceil(quads / across)
  const shares = Math.floor(WIDE / across)
  return /* wgsl */ `
${bindings(
  'qkv: array<vec4f>',
  'state: array<u32>',
  'rotation: array<vec4f>',
  'keys!: array<vec4f>',
  'values!: array<vec4f>',
  'context!: array<vec4f>',
)}
var<workgroup> query: array<vec4f, ${quads}>;
var<workgroup> key: array<vec4f, ${quads}>;
var<workgroup> weights: array<f32, ${WIDE}>;
var<workgroup> partial: array<f32, ${WIDE}>;
var<workgroup> pooled: array<vec4f, ${WIDE}>;

/** Quads i of a head's first half and of its second, turned. */
fn turned(first: u32, position: u32, i: u32) -> array<vec4f, 2> {
  let cosine = rotation[position * ${quads} + i];
  let sine = rotation[position * ${quads} + ${quads / 2} + i];
  let a = qkv[first + i];
  let b = qkv[first + ${quads / 2} + i];
  return array(a * cosine - b * sine, b * cosine + a * sine);
}

${MAIN(WIDE)} {
  let head = group.x;
  let kv = head / ${heads / kvHeads};
  let position = state[1];
  let start = kv * (arrayLength(&keys) / ${kvHeads}); // the key head's part of the cache
  let value = (${heads + kvHeads} + kv) * ${quads};
  for (var i = index; i < ${quads / 2}; i += ${WIDE}) {
    let q = turned(head * ${quads}, position, i);
    query[i] = q[0] * ${1 / Math.sqrt(headDim)};
    query[i + ${quads / 2}] = q[1] * ${1 / Math.sqrt(headDim)};
    let k = turned((${heads} + kv) * ${quads}, position, i);
    key[i] = k[0];
    key[i + ${quads / 2}] = k[1];
  }
  workgroupBarrier();
  // The other heads of this key head do not wait for the cache: they have made the same key.
  if (head % ${heads / kvHeads} == 0) {
    for (var i = index; i < ${quads}; i += ${WIDE}) {
      keys[start + position * ${quads} + i] = key[i];
      values[start + position * ${quads} + i] = qkv[value + i];
    }
  }
  let quad = index % ${across};
  let share = index / ${across};
  var sums: array<vec4f, ${each}>;
  var most = -3.0e38;
  var whole = 0.0;
  // ${WIDE} tokens at a time; when a larger score comes, what was summed before is scaled.
  for (var base = 0u; base <= position; base += ${WIDE}) {
    let token = base + index;
    var score = -3.0e38;
    if (token < position) {
      score = 0;
      for (var i = 0u; i < ${quads}; i++) { score += dot(query[i], keys[start + token * ${quads} + i]); }
    } else if (token == position) {
      score = 0;
      for (var i = 0u; i < ${quads}; i++) { score += dot(query[i], key[i]); }
    }
    partial[index] = score;
    ${combine('max(partial[index], partial[index + other])')}
    let larger = max(most, partial[0]);
    let scale = exp(most - larger);
    most = larger;
    let weight = select(0.0, exp(score - most), token <= position);
    weights[index] = weight;
    workgroupBarrier();
    partial[index] = weight;
    ${combine('partial[index] + partial[index + other]')}
    whole = whole * scale + partial[0];
    for (var n = 0u; n < ${each}; n++) {
      let i = quad + n * ${across};
      var sum = sums[n] * scale;
      if (i < ${quads} && share < ${shares}) {
        let end = min(base + ${WIDE}, position);
        for (var t = base + share; t < end; t += ${shares}) {
          sum += weights[t - base] * values[start + t * ${quads} + i];
        }
        if (share == 0 && position - base < ${WIDE}) { sum += weights[position - base] * qkv[value + i]; }
      }
      sums[n] = sum;
    }
    workgroupBarrier();
  }
  for (var n = 0u; n < ${each}; n++) {
    pooled[index] = sums[n];
    workgroupBarrier();
    let i = quad + n * ${across};
    if (share == 0 && i < ${quads}) {
      var sum = vec4f();
      for (var s = 0u; s < ${shares}; s++) { sum += pooled[s * ${across} + quad]; }
      context[head * ${quads} + i] = sum / whole;
    }
    workgroupBarrier();
  }
}`
}
