/**
 * @module
 * `GET /`: the chat page, one file that loads nothing else. It may talk to this server and to nobody else.
 */
import { createFactory } from 'hono/factory'
import { NONCE, secureHeaders } from 'hono/secure-headers'

export function page(html: string) {
  return createFactory().createHandlers(
    secureHeaders({
      contentSecurityPolicy: {
        defaultSrc: ["'none'"],
        scriptSrc: [NONCE],
        styleSrc: [NONCE],
        connectSrc: ["'self'"],
        imgSrc: ['data:'],
        baseUri: ["'none'"],
        formAction: ["'none'"],
        frameAncestors: ["'none'"],
      },
      referrerPolicy: 'no-referrer',
    }),
    // The page's own script and style carry a nonce; anything that a model's answer might smuggle in carries none.
    (c) => c.html(html.replaceAll('%NONCE%', c.get('secureHeadersNonce') ?? '')),
  )
}
