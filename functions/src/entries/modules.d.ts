/** Types of what the platforms provide: wrangler's module rules and bindings, Deno's globals. */

declare module '*.wasm' {
  const module: WebAssembly.Module
  export default module
}

declare module '*.html' {
  const text: string
  export default text
}

declare module 'cloudflare:workers' {
  export const env: {
    readonly SHARDS?: import('@cloudflare/workers-types').R2Bucket
    readonly ASSETS?: { fetch: import('@sparsedge/engine/store/http').HttpFetch }
  }
  export function waitUntil(work: Promise<unknown>): void
}

/** Of Workers and browsers; Node has none. */
declare const caches: { readonly default: import('@sparsedge/engine/store/cached').ShardCache }

/** The part of Deno that its entry uses; its full types clash with Node's. */
declare const Deno: {
  readonly env: { toObject(): Record<string, string> }
  serve(
    options: {
      readonly hostname: string
      readonly port: number
      onListen(address: { readonly port: number }): void
    },
    handler: (request: Request) => Response | Promise<Response>,
  ): { shutdown(): Promise<void> }
  addSignalListener(signal: 'SIGINT' | 'SIGTERM', handler: () => void): void
  removeSignalListener(signal: 'SIGINT' | 'SIGTERM', handler: () => void): void
}
