/**
 * @module
 * llama.cpp, native, through node-llama-cpp: a child process, `node llama.ts <folder of GGUF files>`, that answers messages.
 * One thread; the library builds nothing and takes no GPU.
 */
import { join } from 'node:path'
import { getLlama, type LlamaContextSequence, type Token } from 'node-llama-cpp'
import { answer } from './child.ts'
import type { Answer } from './task.ts'

const [folder] = process.argv.slice(2)
const llama = await getLlama({ gpu: false, build: 'never', maxThreads: 1 })
const sequences = new Map<string, Promise<LlamaContextSequence>>()

answer({
  async generate({ model, prompt, tokens }): Promise<Answer> {
    const opened = sequences.get(model) ?? open(model)
    sequences.set(model, opened)
    const sequence = await opened
    await sequence.clearHistory()
    // The library's tokens are numbers that only its own tokenizer may make.
    const ids = prompt.map((id) => id as Token)
    const start = performance.now()
    let prefilled = start
    let written = 0
    for await (const _ of sequence.evaluate(ids, { temperature: 0, yieldEogToken: true })) {
      if (written === 0) prefilled = performance.now()
      if (written++ === tokens) break
    }
    const end = performance.now()
    return {
      prefill: (1000 * prompt.length) / (prefilled - start),
      decode: (1000 * tokens) / (end - prefilled),
      text: '',
    }
  },
})

async function open(file: string): Promise<LlamaContextSequence> {
  const model = await llama.loadModel({ modelPath: join(folder, file), gpuLayers: 0 })
  const context = await model.createContext({ threads: 1, contextSize: 1024, batchSize: 512 })
  return context.getSequence()
}
