/**
 * @module
 * `weights-tool push`: a pack to where it is served from.
 */
import { SparsedgeError } from '@sparsedge/engine/errors'
import { Command } from 'commander'
import { openPackDirectory, type PackDirectory } from '../pack-directory.ts'
import { directoryTarget } from '../push/directory.ts'
import { expandPack } from '../push/expand.ts'
import { type PushOptions, type PushResult, push } from '../push/push.ts'
import { pushLocal } from '../push/seed.ts'
import { megabytes } from './format.ts'
import { progressBar } from './progress.ts'

const EXAMPLES = `
Sends the trunk, every layer's bundle and every expert cut from it, each verified, and the manifest last. What is there
already (by name and size) is skipped, so a push that was interrupted goes on where it stopped.

Targets:
  local               the bucket of \`wrangler dev\` on this machine (of the wrangler.toml in the working directory)
  <directory>         for a static file server, a Node or Deno server on this machine, or as the static assets of a
                      Worker without a bucket (see wrangler.assets.toml)
  s3://bucket/prefix  any S3 bucket; --endpoint for all but AWS. Credentials come from the environment:
                      AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION

Examples:
  $ weights-tool push models/smollm2-135m-dsmoe --to local
  $ weights-tool push models/smollm2-135m-dsmoe --to s3://sparsedge-shards \\
      --endpoint https://<account>.r2.cloudflarestorage.com`

interface PushFlags {
  readonly to: string
  readonly endpoint?: string
  readonly force?: true
}

export function pushCommand(): Command {
  return new Command('push')
    .description('send a pack to a bucket or a directory')
    .argument('<pack>', 'pack directory')
    .requiredOption('--to <target>', 'local, a directory, or s3://bucket[/prefix]')
    .option('--endpoint <url>', 'where the S3 API of the bucket is')
    .option('--force', 'send what is there already too: mends objects whose bytes are damaged')
    .addHelpText('after', EXAMPLES)
    .action(runPush)
}

async function runPush(path: string, flags: PushFlags): Promise<void> {
  const target = parseTarget(flags)
  const pack = await openPackDirectory(path)
  const sizes = expandPack(pack.manifest, pack.store).flatMap(({ objects }) => objects)
  const bar = progressBar(Math.round(sizes.reduce((sum, { size }) => sum + size, 0) / 1e6), 'MB')
  const options = { force: flags.force === true, onBytes: (bytes: number) => bar.step(bytes / 1e6, '') }
  const { sent, sentBytes, skipped } = await send(pack, target, options).finally(bar.stop)
  console.log(
    `${pack.manifest.name}: ${sent} objects sent (${megabytes(sentBytes)}), ${skipped} were there already`,
  )
}

type Target =
  | { kind: 'local' }
  | { kind: 'directory'; path: string }
  | { kind: 's3'; bucket: string; prefix: string; endpoint?: string }

/** @throws SparsedgeError `invalid_request` */
export function parseTarget({ to, endpoint }: PushFlags): Target {
  const s3 = /^s3:\/\/([a-z0-9][a-z0-9.-]{2,62})(?:\/(.*))?$/.exec(to)
  if (s3) {
    if (endpoint !== undefined && !URL.canParse(endpoint)) {
      throw new SparsedgeError('invalid_request', `--endpoint "${endpoint}" is not a URL`)
    }
    const [, bucket, path = ''] = s3
    const prefix = path.replace(/^\/+|\/+$/g, '')
    return { kind: 's3', bucket, prefix, ...(endpoint !== undefined && { endpoint }) }
  }
  if (to.startsWith('s3://')) {
    const message = `--to ${to}: a bucket's name has 3 to 63 lower-case letters, digits, dots and hyphens`
    throw new SparsedgeError('invalid_request', message)
  }
  if (endpoint !== undefined) {
    throw new SparsedgeError('invalid_request', '--endpoint is for a target s3://bucket[/prefix]')
  }
  if (/^[a-z0-9+.-]+:\/\//i.test(to)) {
    throw new SparsedgeError(
      'invalid_request',
      `--to ${to}: a target is local, a directory, or s3://bucket[/prefix]`,
    )
  }
  return to === 'local' ? { kind: 'local' } : { kind: 'directory', path: to }
}

async function send(pack: PackDirectory, target: Target, options: PushOptions): Promise<PushResult> {
  if (target.kind === 'local') return await pushLocal(pack, { root: process.cwd(), ...options })
  if (target.kind === 'directory') return await push(pack, directoryTarget(target.path), options)
  // The client takes long to load, and only this target needs it.
  const { s3Target } = await import('../push/s3.ts')
  const bucket = s3Target(target)
  return await push(pack, bucket, options).finally(bucket.close)
}
