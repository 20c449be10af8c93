/**
 * @module
 * Writes ONNX models: nodes are added in the order of computing, each call returns the name of its output.
 */
import type { onnx } from 'onnx-proto'
// CommonJS: its names are not seen from outside.
import proto from 'onnx-proto'

const { AttributeProto, ModelProto, TensorProto } = proto.onnx
const { AttributeType } = AttributeProto
const FLOAT = TensorProto.DataType.FLOAT
const UINT8 = TensorProto.DataType.UINT8
const INT32 = TensorProto.DataType.INT32
const INT64 = TensorProto.DataType.INT64

/** ONNX 1.16: the newest that needs nothing this project does not use. */
const OPSET = 21
const IR_VERSION = 10

/** The element type of what a graph is given or gives back. */
export type ElementType = 'float32' | 'int32' | 'uint8'
const ELEMENT = { float32: FLOAT, int32: INT32, uint8: UINT8 } as const

/** A number is an integer attribute where it is a bigint, a float attribute otherwise. */
export type Attributes = Readonly<Record<string, number | bigint | readonly bigint[]>>

/** Operators of ONNX itself, and those that ONNX Runtime adds. */
export type Domain = '' | 'com.microsoft'

export class Graph {
  readonly #nodes: onnx.INodeProto[] = []
  readonly #inputs = new Map<string, onnx.IValueInfoProto>()
  readonly #outputs: onnx.IValueInfoProto[] = []
  readonly #constants: onnx.ITensorProto[] = []
  #count = 0

  /** A value that every run is given; saying so twice is saying it once. A dimension may have a name where its size is known only then. */
  input(name: string, type: ElementType, shape: readonly (number | string)[]): string {
    this.#inputs.set(name, value(name, type, shape))
    return name
  }

  /** Makes a node's output, named so when it was added, one that every run gives back. */
  output(name: string, type: ElementType, shape: readonly (number | string)[]): void {
    this.#outputs.push(value(name, type, shape))
  }

  /** @param data row-major */
  floats(data: Float32Array, shape: readonly number[]): string {
    return this.#constant(FLOAT, shape, bytesOf(data))
  }

  /** @param data row-major */
  bytes(data: Uint8Array, shape: readonly number[]): string {
    return this.#constant(UINT8, shape, data)
  }

  float(number: number): string {
    return this.floats(Float32Array.of(number), [])
  }

  int64(...numbers: number[]): string {
    return this.#constant(INT64, [numbers.length], bytesOf(BigInt64Array.from(numbers, BigInt)))
  }

  /** @returns the name of the only output: `as`, where it is given */
  node(operator: string, inputs: readonly string[], options: NodeOptions = {}): string {
    return this.nodes(operator, inputs, [options.as ?? this.name(operator)], options)[0]
  }

  /** A node with several outputs; those named '' are not computed. @returns their names */
  nodes<const T extends readonly string[]>(
    operator: string,
    inputs: readonly string[],
    outputs: T,
    { domain = '', attributes = {} }: NodeOptions = {},
  ): T {
    this.#nodes.push({
      opType: operator,
      domain,
      name: this.name(operator),
      input: [...inputs],
      output: [...outputs],
      attribute: Object.entries(attributes).map(([name, content]) => attribute(name, content)),
    })
    return outputs
  }

  /** The model as onnxruntime reads it. */
  model(): Uint8Array<ArrayBuffer> {
    const model = ModelProto.create({
      irVersion: IR_VERSION,
      producerName: 'sparsedge',
      opsetImport: [
        { domain: '', version: OPSET },
        { domain: 'com.microsoft', version: 1 },
      ],
      graph: {
        name: 'step',
        node: this.#nodes,
        input: [...this.#inputs.values()],
        output: this.#outputs,
        initializer: this.#constants,
      },
    })
    return Uint8Array.from(ModelProto.encode(model).finish())
  }

  #constant(dataType: number, dims: readonly number[], rawData: Uint8Array): string {
    const name = this.name('constant')
    this.#constants.push({ name, dataType, dims: [...dims], rawData })
    return name
  }

  /** A name that nothing else has. */
  name(stem: string): string {
    return `${stem}_${this.#count++}`
  }
}

export interface NodeOptions {
  /** What to call the output. */
  readonly as?: string | undefined
  readonly domain?: Domain
  readonly attributes?: Attributes
}

function value(name: string, type: ElementType, shape: readonly (number | string)[]): onnx.IValueInfoProto {
  const dim = shape.map((size) => (typeof size === 'number' ? { dimValue: size } : { dimParam: size }))
  return { name, type: { tensorType: { elemType: ELEMENT[type], shape: { dim } } } }
}

function attribute(name: string, content: number | bigint | readonly bigint[]): onnx.IAttributeProto {
  if (typeof content === 'number') return { name, type: AttributeType.FLOAT, f: content }
  if (typeof content === 'bigint') return { name, type: AttributeType.INT, i: Number(content) }
  return { name, type: AttributeType.INTS, ints: content.map(Number) }
}

function bytesOf({ buffer, byteOffset, byteLength }: ArrayBufferView): Uint8Array {
  return new Uint8Array(buffer, byteOffset, byteLength)
}
