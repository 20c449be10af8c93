import { describe, expect, test } from 'vitest'
import { appSettings, readSettings, Settings } from './settings.ts'

test('only the model must be named; whatever else is in the environment is left alone', () => {
  const settings = readSettings(Settings, { MODEL: 'tiny', PATH: '/bin', SHARDS: {} })
  expect(settings).toEqual({ MODEL: 'tiny', ALLOWED_ORIGINS: [] })
  expect(appSettings(settings)).toEqual({ apiKey: undefined, allowedOrigins: [], limits: {} })
})

test('everything can be set', () => {
  const settings = readSettings(Settings, {
    MODEL: 'tiny',
    API_KEY: 'k',
    ALLOWED_ORIGINS: 'https://a.example, https://b.example,',
    CONTEXT_TOKENS: '512',
    MEMORY_MIB: '80',
    MAX_TOKENS: '100',
    REQUEST_SECONDS: '20',
    EXPERT_FETCHES: '500',
  })
  expect(settings).toMatchObject({ CONTEXT_TOKENS: 512, MEMORY_MIB: 80 })
  expect(appSettings(settings)).toEqual({
    apiKey: 'k',
    allowedOrigins: ['https://a.example', 'https://b.example'],
    limits: { completionTokens: 100, seconds: 20, expertFetches: 500 },
  })
})

test('what is set to nothing is not set', () => {
  expect(
    readSettings(Settings, { MODEL: 'tiny', API_KEY: '', CONTEXT_TOKENS: '', ALLOWED_ORIGINS: '' }),
  ).toEqual({
    MODEL: 'tiny',
    ALLOWED_ORIGINS: [],
  })
})

describe('a server that is set up wrongly does not start, and says why', () => {
  test.each([
    ['MODEL', {}],
    ['MODEL', { MODEL: '' }],
    ['CONTEXT_TOKENS', { MODEL: 'tiny', CONTEXT_TOKENS: 'many' }],
    ['CONTEXT_TOKENS', { MODEL: 'tiny', CONTEXT_TOKENS: '-1' }],
    ['MEMORY_MIB', { MODEL: 'tiny', MEMORY_MIB: '4096' }],
    ['MAX_TOKENS', { MODEL: 'tiny', MAX_TOKENS: '1.5' }],
    ['REQUEST_SECONDS', { MODEL: 'tiny', REQUEST_SECONDS: '0' }],
    ['EXPERT_FETCHES', { MODEL: 'tiny', EXPERT_FETCHES: '-1' }],
    // A timer of so many seconds would fire at once.
    ['REQUEST_SECONDS', { MODEL: 'tiny', REQUEST_SECONDS: '2147484' }],
    ['CONTEXT_TOKENS', { MODEL: 'tiny', CONTEXT_TOKENS: '9007199254740991' }],
    ['MAX_TOKENS', { MODEL: 'tiny', MAX_TOKENS: '9007199254740991' }],
  ])('%s', (name, environment) => {
    expect(() => readSettings(Settings, environment)).toThrow(name)
  })

  test('all that is wrong in one line, each with what it may be', () => {
    const environment = { MODEL: '', MEMORY_MIB: 'lots', REQUEST_SECONDS: '-0.5' }
    expect(() => readSettings(Settings, environment)).toThrow(
      'the environment is not set up: MODEL must be the name of the model to serve; ' +
        'MEMORY_MIB must be a whole number from 1 to 4095; REQUEST_SECONDS must be a whole number from 1 to 86400',
    )
  })
})
