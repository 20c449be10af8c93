import { mkdir, mkdtemp, readdir, readFile, rm, truncate, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { WeightSource } from '@sparsedge/engine/model/weights'
import { parseManifest } from '@sparsedge/engine/pack/manifest'
import { fsStore } from '@sparsedge/engine/store/fs'
import { shardKey } from '@sparsedge/engine/store/store'
import { verified } from '@sparsedge/engine/store/verified'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { writePack } from '../../../test/fixtures/pack-directory.ts'
import { packOf, type TinyPack, tinyPack, tinySource } from '../../../test/fixtures/tiny.ts'
import type { PackDirectory } from '../pack-directory.ts'
import { directoryTarget } from './directory.ts'
import { expandPack } from './expand.ts'
import { type PushTarget, push } from './push.ts'

let folder: string
let tiny: TinyPack
let pack: PackDirectory
/** Objects that a bucket holds of the tiny pack, the manifest not counted. */
let objects: number

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'sparsedge-push-'))
  tiny = await tinyPack()
  pack = await writePack(tiny, join(folder, 'pack'))
  objects = tiny.store.objects.size - 1
})
afterAll(() => rm(folder, { recursive: true }))

/** The pack in a directory that may be damaged. */
const copy = async (name: string) => writePack(tiny, join(folder, name))

/** Everything that a server may ask for is there, and is what its hash says. */
async function expectServable(directory: string) {
  const store = verified(fsStore(directory))
  const manifest = parseManifest(await store.manifest('tiny'))
  expect(manifest).toEqual(tiny.manifest)
  const size = manifest.experts.bytes
  const refs = [
    ...manifest.trunk.shards,
    manifest.text.tokenizer,
    ...(manifest.text.chatTemplate ? [manifest.text.chatTemplate] : []),
    ...manifest.experts.layers.flatMap(({ bundle, shards }) => [
      { hash: bundle, bytes: size * shards.length },
      ...shards.map((hash) => ({ hash, bytes: size })),
    ]),
  ]
  expect(new Set(refs.map(({ hash }) => hash)).size).toBe(objects)
  for (const { hash, bytes } of refs) await store.read(hash, [{ hash, bytes: new Uint8Array(bytes) }])
}

describe('push to a directory', () => {
  test('cuts the experts from the bundles; all of the pack can be served', async () => {
    const out = join(folder, 'out')
    let bytes = 0
    const onBytes = (count: number) => {
      bytes += count
    }
    const result = await push(pack, directoryTarget(out), { onBytes })
    expect(result).toEqual({ sent: objects, sentBytes: bytes, skipped: 0 })
    await expectServable(out)
    expect(await readFile(join(out, 'models/tiny/manifest.json'))).toEqual(
      await readFile(join(pack.path, 'manifest.json')),
    )
  })

  test('a second push sends nothing but the manifest, a third what was damaged or removed meanwhile', async () => {
    const out = join(folder, 'again')
    const target = directoryTarget(out)
    await push(pack, target)
    expect(await push(pack, target)).toEqual({ sent: 0, sentBytes: 0, skipped: objects })
    const { bundle, shards } = tiny.manifest.experts.layers[1]
    await truncate(join(out, shardKey(bundle)), 17)
    await rm(join(out, shardKey(shards[2])))
    expect(await push(pack, target)).toMatchObject({ sent: 2, skipped: objects - 2 })
    await expectServable(out)
  })

  test('what is damaged in the right size is sent again when told to', async () => {
    const out = join(folder, 'forced')
    const target = directoryTarget(out)
    await push(pack, target)
    const path = join(out, shardKey(tiny.manifest.trunk.shards[0].hash))
    const bytes = await readFile(path)
    bytes[0] ^= 1
    await writeFile(path, bytes)
    expect(await push(pack, target)).toMatchObject({ sent: 0 })
    expect(await push(pack, target, { force: true })).toMatchObject({ sent: objects, skipped: 0 })
    await expectServable(out)
  })

  test('equal experts are one object, sent once', async () => {
    const zeros = tinySource()
    const equal: WeightSource = {
      ...zeros,
      async tensor(name) {
        const { shape, data } = await zeros.tensor(name)
        return { shape, data: name.includes('.mlp.') ? data.fill(0) : data }
      },
    }
    const twins = await packOf(equal)
    const { layers } = twins.manifest.experts
    expect(new Set(layers.flatMap(({ shards }) => shards)).size).toBe(1)
    const directory = await writePack(twins, join(folder, 'twins'))
    const puts: string[] = []
    const target = directoryTarget(join(folder, 'twins out'))
    const counting: PushTarget = {
      ...target,
      async put(object, headers) {
        puts.push(object.key)
        await target.put(object, headers)
      },
    }
    const { sent, skipped } = await push(directory, counting)
    expect(puts.length).toBe(new Set(puts).size)
    expect({ sent, skipped }).toEqual({ sent: twins.store.objects.size - 1, skipped: 0 })
    expect(await push(directory, counting)).toMatchObject({ sent: 0, skipped: sent })
  })

  test('two pushes at once into one directory both succeed, and leave nothing but the pack', async () => {
    const out = join(folder, 'at once')
    await Promise.all([push(pack, directoryTarget(out)), push(pack, directoryTarget(out))])
    await expectServable(out)
    expect(await readdir(join(out, 'shards'))).toHaveLength(objects)
    expect(await readdir(join(out, 'models/tiny'))).toEqual(['manifest.json'])
  })

  test.each([
    { when: 'while others are sent', first: false },
    { when: 'while nothing is left to send', first: true },
  ])('an object that goes missing $when keeps the manifest back', async ({ when, first }) => {
    const out = join(folder, `lost ${when}`)
    const directory = directoryTarget(out)
    if (first) {
      await push(pack, directory)
      await rm(join(out, 'models'), { recursive: true })
    }
    let listings = 0
    const leaking: PushTarget = {
      ...directory,
      async shards() {
        const there = await directory.shards()
        if (++listings === 2) there.delete(shardKey(tiny.manifest.text.tokenizer.hash))
        return there
      },
    }
    await expect(push(pack, leaking)).rejects.toMatchObject({
      code: 'shard_missing',
      message: expect.stringContaining(tiny.manifest.text.tokenizer.hash),
    })
    await expect(fsStore(out).manifest('tiny')).rejects.toMatchObject({ code: 'unknown_model' })
  })

  test.each([
    { what: 'a file in place of the directory', at: '' },
    { what: 'a file in place of its shards', at: 'shards' },
    { what: 'a file in place of its models', at: 'models' },
  ])('$what is told in words', async ({ what, at }) => {
    const out = join(folder, what)
    if (at !== '') await mkdir(out)
    await writeFile(join(out, at), 'mine')
    const message = expect.stringContaining('a file stands where a directory is needed')
    await expect(push(pack, directoryTarget(out))).rejects.toMatchObject({ message })
    expect(await readFile(join(out, at), 'utf8')).toBe('mine')
  })

  test('the manifest goes last; a push that was interrupted goes on where it stopped', async () => {
    const out = join(folder, 'interrupted')
    const directory = directoryTarget(out)
    const keys: string[] = []
    const failing: PushTarget = {
      ...directory,
      async put(object, headers) {
        if (keys.length === 7) throw new Error('connection lost')
        keys.push(object.key)
        await directory.put(object, headers)
      },
    }
    await expect(push(pack, failing)).rejects.toThrow('connection lost')
    await expect(fsStore(out).manifest('tiny')).rejects.toMatchObject({ code: 'unknown_model' })
    const watching: PushTarget = {
      ...directory,
      async put(object, headers) {
        await directory.put(object, headers)
        keys.push(object.key)
      },
    }
    expect(await push(pack, watching)).toMatchObject({ sent: objects - 7, skipped: 7 })
    expect(keys.at(-1)).toBe('models/tiny/manifest.json')
    expect(new Set(keys).size).toBe(objects + 1)
    await expectServable(out)
  })

  test.each([
    {
      fault: 'a flipped bit in a bundle',
      code: 'shard_hash_mismatch',
      damage: async (path: string) => {
        const bytes = await readFile(path)
        bytes[bytes.length - 1] ^= 1
        await writeFile(path, bytes)
      },
    },
    { fault: 'a truncated bundle', code: 'shard_too_short', damage: (path: string) => truncate(path, 100) },
    { fault: 'a missing bundle', code: 'shard_missing', damage: (path: string) => rm(path) },
  ])('$fault stops it before the manifest', async ({ fault, code, damage }) => {
    const damaged = await copy(fault)
    const { bundle } = tiny.manifest.experts.layers[2]
    await damage(join(damaged.path, shardKey(bundle)))
    const out = join(folder, `${fault} out`)
    await expect(push(damaged, directoryTarget(out))).rejects.toMatchObject({ code })
    await expect(fsStore(out).manifest('tiny')).rejects.toMatchObject({ code: 'unknown_model' })
  })

  test('a bundle whose experts are not those of the manifest is refused', async () => {
    const [first, ...rest] = tiny.manifest.experts.layers
    const swapped = { ...first, shards: [...first.shards].reverse() }
    const manifest = { ...tiny.manifest, experts: { ...tiny.manifest.experts, layers: [swapped, ...rest] } }
    const out = join(folder, 'swapped')
    await expect(push({ ...pack, manifest }, directoryTarget(out))).rejects.toMatchObject({
      code: 'shard_hash_mismatch',
      place: { expert: 0, shard: first.shards[3] },
    })
  })

  test('an object is told how to be served: shards for ever, the manifest for a minute', async () => {
    const served = new Map<string, string>()
    const directory = directoryTarget(join(folder, 'headers'))
    const target: PushTarget = {
      ...directory,
      async put(object, headers) {
        served.set(object.key, `${headers.contentType}; ${headers.cacheControl}`)
        await directory.put(object, headers)
      },
    }
    await push(pack, target)
    const manifest = served.get('models/tiny/manifest.json')
    expect(manifest).toBe('application/json; public, max-age=60')
    served.delete('models/tiny/manifest.json')
    expect([...new Set(served.values())]).toEqual([
      'application/octet-stream; public, max-age=31536000, immutable',
    ])
  })

  test('cancelling stops it', async () => {
    const abort = new AbortController()
    const out = join(folder, 'cancelled')
    const options = { onBytes: () => abort.abort(), signal: abort.signal }
    const pushing = push(pack, directoryTarget(out), options)
    await expect(pushing).rejects.toMatchObject({ code: 'cancelled' })
    await expect(fsStore(out).manifest('tiny')).rejects.toMatchObject({ code: 'unknown_model' })
  })
})

describe('expandPack', () => {
  test('lists the trunk, the text files, then per layer the experts and their bundle', async () => {
    const files = expandPack(pack.manifest, pack.store)
    const { trunk, text, experts, config } = pack.manifest
    const texts = text.chatTemplate ? 2 : 1
    expect(files.map(({ objects }) => objects.length)).toEqual([
      ...Array(trunk.shards.length + texts).fill(1),
      ...Array(config.layers).fill(config.experts + 1),
    ])
    for (const file of files) {
      const read = await file.read()
      expect(read.map(({ key, bytes }) => ({ key, size: bytes.length }))).toEqual(file.objects)
    }
    expect(files.at(-1)?.objects.at(-1)?.key).toBe(shardKey(experts.layers[config.layers - 1].bundle))
  })
})
