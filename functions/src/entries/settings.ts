/**
 * @module
 * What a deployment can set, as strings in its environment; the same names on every platform.
 */
import { z } from 'zod'
import type { AppOptions } from '../app.ts'

/** A number in words that name its range. */
export const whole = (least: number, most: number) => {
  const words = `must be a whole number from ${least} to ${most}`
  return z.coerce.number(words).int(words).min(least, words).max(most, words)
}
/** More than any machine holds. */
const MOST_TOKENS = 1 << 20
/** A day. Timers take no more than 24 of them, and fire at once where they are given more. */
const MOST_SECONDS = 86_400
/** What a WebAssembly memory can have, less a page. */
const MOST_MIB = 4095
/** `FOO=` in an environment file means that FOO is not set. */
export const optional = <T extends z.ZodType>(type: T) =>
  z.preprocess((value) => value || undefined, type.optional())
/** What has to be set. */
export const named = (words: string) => z.string(words).min(1, words)

export const Settings = z.object({
  /** The model that is served: `models/<MODEL>/manifest.json` in the store. */
  MODEL: named('must be the name of the model to serve'),
  /** Absent: no key is asked for. */
  API_KEY: optional(z.string()),
  /** Comma-separated origins whose pages may call this server; `*` for all. */
  ALLOWED_ORIGINS: z
    .string()
    .default('')
    .transform((list) =>
      list
        .split(',')
        .map((origin) => origin.trim())
        .filter((origin) => origin !== ''),
    ),
  /** Tokens, prompts and answers, of all conversations under way together; what they take is taken from the arena. */
  CONTEXT_TOKENS: optional(whole(1, MOST_TOKENS)),
  /** The most WebAssembly memory for trunk, experts, keys and values. */
  MEMORY_MIB: optional(whole(1, MOST_MIB)),
  /** The longest answer, in tokens. */
  MAX_TOKENS: optional(whole(1, MOST_TOKENS)),
  /** The longest that one request may take. */
  REQUEST_SECONDS: optional(whole(1, MOST_SECONDS)),
  /** The most fetches of experts for one answer. */
  EXPERT_FETCHES: optional(whole(1, MOST_TOKENS)),
})

export type Settings = z.infer<typeof Settings>

/**
 * @param schema {@link Settings}, or those and a platform's own
 * @param env an environment with anything else in it besides
 * @throws Error that names every setting that is wrong, in one line: a server that is set up wrongly must not start
 */
export function readSettings<T>(schema: z.ZodType<T>, env: unknown): T {
  const parsed = schema.safeParse(env)
  if (parsed.success) return parsed.data
  const wrong = new Set(parsed.error.issues.map(({ path, message }) => `${path.join('.')} ${message}`))
  throw new Error(`the environment is not set up: ${[...wrong].join('; ')}`)
}

/** The part of the application's options that comes from the settings alone. */
export function appSettings(settings: Settings): Pick<AppOptions, 'apiKey' | 'allowedOrigins' | 'limits'> {
  const { MAX_TOKENS, REQUEST_SECONDS, EXPERT_FETCHES } = settings
  return {
    apiKey: settings.API_KEY,
    allowedOrigins: settings.ALLOWED_ORIGINS,
    limits: {
      ...(MAX_TOKENS !== undefined && { completionTokens: MAX_TOKENS }),
      ...(REQUEST_SECONDS !== undefined && { seconds: REQUEST_SECONDS }),
      ...(EXPERT_FETCHES !== undefined && { expertFetches: EXPERT_FETCHES }),
    },
  }
}
