/**
 * @module
 * The script of index.html: loads a pack from the server it came from and generates, on the backend that is chosen.
 */
import { createEngine, type Engine, GREEDY, SparsedgeError } from '@sparsedge/engine'
import { type BackendName, namedBackend } from '@sparsedge/engine/backends/named'
import { httpStore } from '@sparsedge/engine/store/http'

const TOKENS = 32

const form = find('form', HTMLFormElement)
const output = find('output', HTMLOutputElement)
const status = find('[role=status]', HTMLElement)

form.addEventListener('submit', (event) => {
  event.preventDefault()
  const fields = new FormData(form)
  const text = (name: string) => String(fields.get(name))
  generate(text('backend'), text('model'), text('prompt')).catch((error: unknown) => {
    status.textContent = error instanceof SparsedgeError ? `${error.code}: ${error.message}` : String(error)
  })
})

async function generate(backend: string, model: string, prompt: string): Promise<void> {
  output.textContent = ''
  status.textContent = 'loading'
  const engine = await open(backend, model)
  const request = { prompt: { text: prompt }, maxTokens: TOKENS, sampling: GREEDY, stop: [] }
  for await (const event of engine.generate(request)) {
    if (event.type === 'text') {
      output.textContent += event.text
      continue
    }
    const { completionTokens, decodeMs, experts } = event.usage
    const share = Math.round(100 * experts.activeShare)
    const speed = ((1000 * completionTokens) / decodeMs).toFixed(1)
    status.textContent = `${engine.backend}: ${completionTokens} tokens, ${speed} a second, ${share} % of the experts`
  }
}

function open(backend: string, model: string): Promise<Engine> {
  const names: readonly BackendName[] = ['auto', 'wasm', 'webgpu']
  const name = names.find((each) => each === backend) ?? 'auto'
  const here = new URL('/', location.href)
  return createEngine({
    store: httpStore(here.href),
    model,
    backend: namedBackend(name, { kernelsUrl: here, onnxruntimePath: here.href }),
  })
}

function find<T extends Element>(selector: string, type: new () => T): T {
  const element = document.querySelector(selector)
  if (element instanceof type) return element
  throw new Error(`the page has no ${selector}`)
}
