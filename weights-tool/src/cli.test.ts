import { execFile } from 'node:child_process'
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseManifest } from '@sparsedge/engine/pack/manifest'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { ggufBytes, ggufMetadata, ggufTensors, writeHuggingFace } from '../../test/fixtures/checkpoints.ts'
import { GATES, tinySource } from '../../test/fixtures/tiny.ts'
import { createProgram } from './cli.ts'

const CLI = fileURLToPath(new URL('./cli.ts', import.meta.url))

let directory: string
let checkpoint: string
beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'weights-tool-'))
  checkpoint = join(directory, 'checkpoint')
  const quality = [{ share: 0.5, text: 'chat', perplexity: 5.25, kl: 0.304 }]
  const profile = [0, 1, 2].map(() => [0.5, 0.25, 1, 0])
  await writeHuggingFace(checkpoint, tinySource(), { config: { quality, profile } })
})
afterAll(() => rm(directory, { recursive: true }))

/** Runs the real command line in a process of its own. */
function run(...args: string[]): Promise<{ code: number; stdout: string; stderr: string }> {
  return new Promise((done) => {
    execFile(process.execPath, [CLI, ...args], (error, stdout, stderr) => {
      done({ code: typeof error?.code === 'number' ? error.code : 0, stdout, stderr })
    })
  })
}

const at = (...path: string[]) => join(directory, ...path)

it('has these commands and options; a change here is a change for its users', () => {
  const surface = createProgram().commands.map((command) => [
    command.name(),
    command.registeredArguments.map((argument) => argument.name()).join(' '),
    command.options.map((option) => option.flags),
  ])
  expect(surface).toEqual([
    [
      'pack',
      'checkpoint',
      [
        '-o, --out <directory>',
        '--name <name>',
        '--experts <count>',
        '--context <tokens>',
        '--embedding <layout>',
        '--fine-rows <count>',
        '--attention <layout>',
        '--experts-layout <layout>',
        '--tokenizer <file>',
        '--chat-template <file>',
        '--source <text>',
        '--licence <spdx>',
        '--force',
      ],
    ],
    ['inspect', 'pack', []],
    ['verify', 'pack', []],
    ['unpack', 'pack', ['-o, --out <directory>', '--dtype <type>']],
    ['push', 'pack', ['--to <target>', '--endpoint <url>', '--force']],
    ['train', 'settings', ['--set <field=value>', '--python <program>', '--gpus <count>']],
    ['upcycle', 'settings', ['--set <field=value>', '--python <program>', '--gpus <count>']],
    ['data', 'settings', ['--set <field=value>', '--python <program>']],
    ['generate', 'settings', ['--set <field=value>', '--python <program>']],
    ['eval', 'settings', ['--set <field=value>', '--python <program>']],
  ])
})

it('explains every command with an example', async () => {
  for (const command of createProgram().commands) {
    let help = ''
    command.configureOutput({ writeOut: (text) => (help += text) }).outputHelp()
    expect(help, command.name()).toContain(`$ weights-tool ${command.name()} `)
  }
})

describe('a checkpoint', () => {
  it('is packed, shown, verified, unpacked and packed again', async () => {
    const packed = await run('pack', checkpoint, '--out', at('tiny'), '--licence', 'Apache-2.0')
    expect(packed).toMatchObject({ code: 0, stdout: expect.stringMatching(/^tiny: 0\.\d+ MB in .+\n$/) })
    const manifest = parseManifest(await readFile(at('tiny', 'manifest.json')))
    expect(manifest).toMatchObject({
      name: 'tiny',
      provenance: { source: 'checkpoint', licence: 'Apache-2.0' },
    })
    // Every object but the experts', which are in the bundles.
    const { trunk, experts, text } = manifest
    const named = [...trunk.shards.map(({ hash }) => hash), ...experts.layers.map(({ bundle }) => bundle)]
    const files = [...named, text.tokenizer.hash, text.chatTemplate?.hash]
    expect((await readdir(at('tiny', 'shards'))).sort()).toEqual(files.sort())

    const shown = await run('inspect', at('tiny'))
    expect(shown.code).toBe(0)
    for (const word of [
      'clamped_linear',
      '3 x 4',
      'embed_tokens.weight',
      'chat',
      'share asked for',
      '5.25',
      '43.8 %',
    ]) {
      expect(shown.stdout).toContain(word)
    }

    expect(await run('verify', at('tiny'))).toMatchObject({
      code: 0,
      stdout: expect.stringContaining('6 objects and 12 experts in them are as they should be'),
    })

    expect(await run('unpack', at('tiny'), '--out', at('unpacked'))).toMatchObject({ code: 0 })
    expect(await run('pack', at('unpacked'), '--out', at('again'), '--name', 'tiny')).toMatchObject({
      code: 0,
    })
    const again = parseManifest(await readFile(at('again', 'manifest.json')))
    expect(again).toMatchObject({
      config: manifest.config,
      quality: manifest.quality,
      profile: manifest.profile,
    })
  })

  it('keeps a second plane for the first rows, when told to, through unpacking and packing again', async () => {
    expect(await run('pack', checkpoint, '--out', at('some'), '--fine-rows', '96')).toMatchObject({ code: 0 })
    expect((await run('inspect', at('some'))).stdout).toContain('q8 below 96, q4')
    expect(await run('verify', at('some'))).toMatchObject({ code: 0 })
    expect(await run('unpack', at('some'), '--out', at('some-unpacked'))).toMatchObject({ code: 0 })
    const pack = (out: string) => run('pack', at('some-unpacked'), '--out', at(out), '--fine-rows', '96')
    expect(await pack('some-again')).toMatchObject({ code: 0 })
    const [before, after] = [
      await readFile(at('some', 'manifest.json')),
      await readFile(at('some-again', 'manifest.json')),
    ]
    expect(parseManifest(after).trunk.tensors).toEqual(parseManifest(before).trunk.tensors)
    expect(await run('pack', checkpoint, '--out', at('none'), '--fine-rows', '24')).toMatchObject({
      code: 1,
      stderr: expect.stringContaining('a multiple of 16 is needed'),
    })
    const coarse = ['--embedding', 'q4', '--fine-rows', '96']
    expect(await run('pack', checkpoint, '--out', at('none'), ...coarse)).toMatchObject({
      code: 1,
      stderr: expect.stringContaining('--embedding q4 leaves no rows for --fine-rows'),
    })
  })

  it('gives the same manifest every time, and replaces a pack only when told to', async () => {
    await run('pack', checkpoint, '--out', at('one'), '--name', 'same')
    await run('pack', checkpoint, '--out', at('two'), '--name', 'same')
    const first = await readFile(at('one', 'manifest.json'))
    expect(await readFile(at('two', 'manifest.json'))).toEqual(first)
    expect(await run('pack', checkpoint, '--out', at('two'))).toMatchObject({
      code: 1,
      stderr: expect.stringContaining('--force replaces it'),
    })
    const forced = await run('pack', checkpoint, '--out', at('two'), '--force', '--experts-layout', 'q8')
    expect(forced.code).toBe(0)
    expect(parseManifest(await readFile(at('two', 'manifest.json'))).experts.layout).toBe('q8')
  })

  it('in GGUF is split into the experts asked for', async () => {
    const source = tinySource({ gate: GATES.all, expertUnits: 64 })
    await writeFile(at('tiny.gguf'), ggufBytes(ggufMetadata(source.config), await ggufTensors(source)))
    const packed = await run(
      'pack',
      at('tiny.gguf'),
      '--out',
      at('from-gguf'),
      '--experts',
      '8',
      '--context',
      '99',
    )
    expect(packed.code).toBe(0)
    expect(parseManifest(await readFile(at('from-gguf', 'manifest.json')))).toMatchObject({
      config: { experts: 8, expertUnits: 32, context: 99 },
      provenance: { licence: 'apache-2.0' },
    })
  })
})

describe('verify', () => {
  it('lists every fault and ends with 1', async () => {
    await run('pack', checkpoint, '--out', at('damaged'))
    const { experts, text } = parseManifest(await readFile(at('damaged', 'manifest.json')))
    const bundle = at('damaged', 'shards', experts.layers[1].bundle)
    const bytes = await readFile(bundle)
    bytes[10] ^= 1
    await writeFile(bundle, bytes)
    await writeFile(at('damaged', 'shards', experts.layers[2].bundle), bytes.subarray(5))
    await rm(at('damaged', 'shards', text.tokenizer.hash))
    const { code, stdout, stderr } = await run('verify', at('damaged'))
    expect(code).toBe(1)
    const codes = stdout.split('\n').map((line) => line.split(':')[0])
    expect(codes.sort()).toEqual(['', 'shard_hash_mismatch', 'shard_missing', 'shard_too_short'])
    for (const part of ['the bundle of layer 1 (', 'the bundle of layer 2 (', 'tokenizer.json (']) {
      expect(stdout).toContain(part)
    }
    // The pack that is wrong is this one, not what was pushed from it.
    expect(stdout).toContain('copy the pack here again, or pack the model again')
    expect(stdout).not.toContain('push')
    expect(stderr).toContain('error: 3 of 6 objects of damaged are wrong')
  })
})

describe('a pack from a stranger', () => {
  it('does not command the terminal', async () => {
    const source = '\u001b]0;owned\u0007 checkpoint \u009b2J'
    await run('pack', checkpoint, '--out', at('stranger'), '--source', source)
    const shown = await run('inspect', at('stranger'))
    expect(shown).toMatchObject({ code: 0, stdout: expect.stringContaining('owned') })
    const manifest = at('stranger', 'manifest.json')
    const json = JSON.parse(await readFile(manifest, 'utf8'))
    await writeFile(manifest, JSON.stringify({ ...json, 'odd \u001b[2J': 1 }))
    const refused = await run('verify', at('stranger'))
    expect(refused).toMatchObject({ code: 1, stderr: expect.stringContaining('odd') })
    for (const command of ['\u001b', '\u0007', '\u009b']) {
      expect(shown.stdout + refused.stderr).not.toContain(command)
    }
  })
})

describe('a failure', () => {
  it.each([
    ['no checkpoint', ['pack', 'nowhere', '--out', 'x'], 'error: there is no checkpoint at nowhere'],
    ['no pack', ['inspect', 'nowhere'], 'error: nowhere is not a pack: it has no manifest.json'],
    ['no target', ['pack', 'nowhere'], "error: required option '-o, --out <directory>' not specified"],
    [
      'an unknown layout',
      ['pack', 'x', '--out', 'y', '--embedding', 'q5'],
      'Allowed choices are auto, q4, q8',
    ],
    [
      'a number that is none',
      ['pack', 'x', '--out', 'y', '--experts', '-1'],
      'a positive whole number is needed',
    ],
    ['an unknown command', ['bake'], "error: unknown command 'bake'"],
  ])('%s is one line and exit code 1', async (_, args, line) => {
    const { code, stdout, stderr } = await run(...args)
    expect({ code, stdout }).toEqual({ code: 1, stdout: '' })
    expect(stderr).toContain(line)
    expect(stderr.trim().split('\n')).toHaveLength(1)
  })

  it('tells its causes only when asked', async () => {
    await writeFile(at('broken.gguf'), 'not a GGUF file')
    const args = ['pack', at('broken.gguf'), '--out', at('never')]
    expect((await run(...args)).stderr).not.toContain('because')
    expect((await run('--verbose', ...args)).stderr).toContain('because')
  })

  it('leaves nothing behind', async () => {
    const broken = at('broken-checkpoint')
    await writeHuggingFace(broken, tinySource(), { config: { num_hidden_layers: 4 } })
    const { code, stderr } = await run('pack', broken, '--out', at('half'))
    expect(code).toBe(1)
    expect(stderr).toContain('has no tensor model.layers.3.')
    expect(await readdir(directory)).not.toEqual(expect.arrayContaining([expect.stringContaining('half')]))
  })

  it.each(['pack', 'unpack', 'push'])('of %s leaves a file alone that stands in its way', async (command) => {
    const file = at(`file-${command}`)
    await writeFile(file, 'mine')
    await run('pack', checkpoint, '--out', at('source'), '--force')
    const from = command === 'pack' ? checkpoint : at('source')
    const { code, stderr } = await run(command, from, command === 'push' ? '--to' : '--out', file)
    expect(code).toBe(1)
    expect(stderr).toContain('a file stands where a directory is needed; choose another path')
    expect(await readFile(file, 'utf8')).toBe('mine')
  })

  it.each(['pack', 'unpack'])('of %s never touches files of others', async (command) => {
    const taken = at(`taken-${command}`)
    await writeHuggingFace(taken, tinySource())
    await run('pack', checkpoint, '--out', at('source'), '--force')
    const from = command === 'pack' ? checkpoint : at('source')
    const force = command === 'pack' ? ['--force'] : []
    expect(await run(command, from, '--out', taken, ...force)).toMatchObject({ code: 1 })
    expect(await readdir(taken)).toHaveLength(4)
  })
})
