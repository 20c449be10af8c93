/**
 * @module
 * SHA-256 as shards are named by it. WebCrypto, which every runtime has and runs natively.
 */

/**
 * The digest in lower-case hex.
 *
 * @param bytes any view that is not on shared memory; a view of a WASM memory will do
 */
export async function sha256(bytes: Uint8Array<ArrayBuffer>): Promise<string> {
  const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', bytes))
  let hex = ''
  for (const byte of digest) hex += byte.toString(16).padStart(2, '0')
  return hex
}
