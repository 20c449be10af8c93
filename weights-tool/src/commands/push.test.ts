import { describe, expect, test } from 'vitest'
import { parseTarget } from './push.ts'

describe('parseTarget', () => {
  test.each([
    { flags: { to: 'local' }, target: { kind: 'local' } },
    { flags: { to: './local' }, target: { kind: 'directory', path: './local' } },
    { flags: { to: 'out/packs' }, target: { kind: 'directory', path: 'out/packs' } },
    { flags: { to: 's3://packs' }, target: { kind: 's3', bucket: 'packs', prefix: '' } },
    {
      flags: { to: 's3://my.packs/a/b/', endpoint: 'https://x.example' },
      target: { kind: 's3', bucket: 'my.packs', prefix: 'a/b', endpoint: 'https://x.example' },
    },
  ])('$flags.to', ({ flags, target }) => {
    expect(parseTarget(flags)).toEqual(target)
  })

  test.each([
    { flags: { to: 's3://' }, message: "a bucket's name" },
    { flags: { to: 's3://My_Packs', endpoint: 'https://x.example' }, message: "a bucket's name" },
    { flags: { to: 's3://ab' }, message: "a bucket's name" },
    { flags: { to: 'gs://packs' }, message: 'a target is' },
    { flags: { to: 's3://packs', endpoint: 'nonsense' }, message: 'not a URL' },
    { flags: { to: 'local', endpoint: 'https://x.example' }, message: 'is for a target s3' },
  ])('refuses $flags', ({ flags, message }) => {
    expect(() => parseTarget(flags)).toThrow(
      expect.objectContaining({ code: 'invalid_request', message: expect.stringContaining(message) }),
    )
  })
})
