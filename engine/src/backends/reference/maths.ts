/**
 * @module
 * The blocks that a transformer is built of, in plain loops. Numbers are stored as float32 and summed as float64.
 */

/** A matrix that may be a cut of a larger one: element (r, c) is data[offset + r · stride + c]. */
export interface Matrix {
  readonly data: Float32Array
  readonly rows: number
  readonly cols: number
  readonly stride: number
  readonly offset: number
}

export function rowsOf(m: Matrix, start: number, rows: number): Matrix {
  return { ...m, rows, offset: m.offset + start * m.stride }
}

export function colsOf(m: Matrix, start: number, cols: number): Matrix {
  return { ...m, cols, offset: m.offset + start }
}

/**
 * y = W x for every token. Rows outside, tokens inside: each row of weights is read from memory once. Four rows at a
 * time, because a single sum would wait for itself at every addition.
 *
 * @param x [tokens, cols]
 * @returns [tokens, rows]
 */
export function linear(w: Matrix, x: Float32Array): Float32Array {
  const { data, rows, cols, stride, offset } = w
  const tokens = x.length / cols
  const y = new Float32Array(tokens * rows)
  for (let row = 0; row < rows; row += 4) {
    // At the end of a matrix whose rows are no multiple of 4, the last row is computed more than once.
    const r1 = Math.min(row + 1, rows - 1)
    const r2 = Math.min(row + 2, rows - 1)
    const r3 = Math.min(row + 3, rows - 1)
    const w0 = offset + row * stride
    const w1 = offset + r1 * stride
    const w2 = offset + r2 * stride
    const w3 = offset + r3 * stride
    for (let t = 0; t < tokens; t++) {
      let s0 = 0
      let s1 = 0
      let s2 = 0
      let s3 = 0
      for (let c = 0; c < cols; c++) {
        const value = x[t * cols + c]
        s0 += data[w0 + c] * value
        s1 += data[w1 + c] * value
        s2 += data[w2 + c] * value
        s3 += data[w3 + c] * value
      }
      y[t * rows + row] = s0
      y[t * rows + r1] = s1
      y[t * rows + r2] = s2
      y[t * rows + r3] = s3
    }
  }
  return y
}

/** Inner product of n numbers of each, from the given places on. */
function dot(a: Float32Array, atA: number, b: Float32Array, atB: number, n: number): number {
  let sum = 0
  for (let i = 0; i < n; i++) sum += a[atA + i] * b[atB + i]
  return sum
}

/** a += scale · b */
export function addTo(a: Float32Array, b: Float32Array, scale = 1): void {
  for (let i = 0; i < a.length; i++) a[i] += scale * b[i]
}

/**
 * RMSNorm: x / sqrt(mean(x²) + eps) · w, token by token.
 *
 * @param x [tokens, hidden]
 * @param w [hidden]
 */
export function rmsNorm(x: Float32Array, w: Float32Array, eps: number): Float32Array {
  const hidden = w.length
  const y = new Float32Array(x.length)
  for (let at = 0; at < x.length; at += hidden) {
    const scale = 1 / Math.sqrt(dot(x, at, x, at, hidden) / hidden + eps)
    for (let i = 0; i < hidden; i++) y[at + i] = x[at + i] * scale * w[i]
  }
  return y
}

/**
 * Rotary position embedding in place, rotate-half: component i and i + headDim/2 of each head turn together by the
 * angle position · invFreq[i].
 *
 * @param x [tokens, heads · headDim], of the positions from `start` on
 * @param scale multiplies the result (YaRN)
 */
export function rotate(
  x: Float32Array,
  heads: number,
  invFreq: Float32Array,
  start: number,
  scale: number,
): void {
  const half = invFreq.length
  const width = heads * 2 * half
  for (let at = 0, position = start; at < x.length; at += width, position++) {
    for (let i = 0; i < half; i++) {
      const cos = Math.cos(position * invFreq[i]) * scale
      const sin = Math.sin(position * invFreq[i]) * scale
      for (let j = at + i; j < at + width; j += 2 * half) {
        const a = x[j]
        const b = x[j + half]
        x[j] = a * cos - b * sin
        x[j + half] = b * cos + a * sin
      }
    }
  }
}

/**
 * Causal grouped-query attention: softmax(q kᵀ / sqrt(headDim)) v, each query over the positions up to its own.
 *
 * @param q [tokens, heads · headDim], of the positions from `start` on
 * @param keys [capacity, kvHeads · headDim], filled up to the last of these tokens; `values` likewise
 * @returns [tokens, heads · headDim]
 */
export function attend(
  q: Float32Array,
  keys: Float32Array,
  values: Float32Array,
  start: number,
  shape: { readonly heads: number; readonly kvHeads: number; readonly headDim: number },
): Float32Array {
  const { heads, kvHeads, headDim } = shape
  const out = new Float32Array(q.length)
  const tokens = q.length / (heads * headDim)
  const weights = new Float64Array(start + tokens)
  for (let t = 0; t < tokens; t++) {
    for (let head = 0; head < heads; head++) {
      const query = (t * heads + head) * headDim
      // Consecutive query heads share one key-value head.
      const kv = Math.floor((head * kvHeads) / heads)
      let max = Number.NEGATIVE_INFINITY
      for (let p = 0; p <= start + t; p++) {
        weights[p] = dot(q, query, keys, (p * kvHeads + kv) * headDim, headDim) / Math.sqrt(headDim)
        max = Math.max(max, weights[p])
      }
      let sum = 0
      for (let p = 0; p <= start + t; p++) {
        weights[p] = Math.exp(weights[p] - max)
        sum += weights[p]
      }
      for (let i = 0; i < headDim; i++) {
        let value = 0
        for (let p = 0; p <= start + t; p++) value += weights[p] * values[(p * kvHeads + kv) * headDim + i]
        out[query + i] = value / sum
      }
    }
  }
  return out
}

/** SwiGLU: silu(gate) · up, with silu(x) = x / (1 + exp(-x)). */
export function swiglu(gate: Float32Array, up: Float32Array): Float32Array {
  return gate.map((g, i) => (g / (1 + Math.exp(-g))) * up[i])
}
