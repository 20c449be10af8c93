#!/usr/bin/env node
/**
 * @module
 * The command line: one file of `commands/` per command. Results go to stdout, progress and errors to stderr; the exit
 * code is 0 or 1.
 */
import { Command } from 'commander'
import packageJson from '../package.json' with { type: 'json' }
import { printable } from './commands/format.ts'
import { inspectCommand } from './commands/inspect.ts'
import { packCommand } from './commands/pack.ts'
import { pushCommand } from './commands/push.ts'
import { trainingCommands } from './commands/training.ts'
import { unpackCommand } from './commands/unpack.ts'
import { verifyCommand } from './commands/verify.ts'
import { inWords } from './files.ts'

export function createProgram(): Command {
  const program = new Command('weights-tool')
    .description(
      'Trains language models, turns checkpoints into packs that Sparsedge serves, and looks after packs.',
    )
    .version(packageJson.version)
    .option('--verbose', 'show the whole chain of causes of an error')
    .addCommand(packCommand())
    .addCommand(inspectCommand())
    .addCommand(verifyCommand())
    .addCommand(unpackCommand())
    .addCommand(pushCommand())
    .addHelpText('after', '\n`weights-tool <command> --help` explains a command with examples.')
  for (const command of trainingCommands()) program.addCommand(command)
  return program
}

/** One line a cause. */
function describe(error: unknown, verbose: boolean): string {
  if (!(error instanceof Error)) return String(error)
  const lines = [`error: ${error.message}`]
  for (let cause = error.cause; verbose && cause instanceof Error; cause = cause.cause) {
    lines.push(`  because: ${cause.stack ?? cause.message}`)
  }
  return lines.join('\n')
}

if (import.meta.main) {
  const program = createProgram()
  try {
    await program.parseAsync()
  } catch (error) {
    const verbose = program.opts<{ verbose?: true }>().verbose === true
    console.error(printable(describe(inWords(error), verbose)))
    process.exitCode = 1
  }
}
