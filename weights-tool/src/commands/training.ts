/**
 * @module
 * `weights-tool train`, `upcycle`, `data`, `generate` and `eval`: five doors to the trainer, which is written in Python.
 * All take a settings file and overrides; what a command can do is a setting, not a flag.
 */
import { Command, InvalidArgumentError } from 'commander'
import { runTrainer } from '../trainer.ts'

interface Flags {
  readonly set?: readonly string[]
  readonly python?: string
  readonly gpus?: number
}

const SETTINGS = `
The settings are a TOML file; weights-tool/train/configs has one of each kind to start from, and
weights-tool/train/dsmoe_train/config.py explains every field. A field that does not exist is an error.
PyTorch and the rest are installed on first use, beside the trainer (Python 3.11 or later must be there).
`

export function trainingCommands(): Command[] {
  return [
    training(
      'train',
      'train a model from scratch, or a checkpoint further',
      `
A run that stopped goes on with the same command; its last step and the next are bit for bit those of an unbroken run.
The run's directory ends up with settings.txt, log.jsonl, plots/ and checkpoint/, which \`pack\` takes.

Examples:
  $ weights-tool train weights-tool/train/configs/scratch.toml --gpus 8
  $ weights-tool train weights-tool/train/configs/further.toml --set student=checkpoint
  $ weights-tool train mine.toml --set run.directory=runs/try-2 --set stages.end_to_end.lr=1e-4`,
      { gpus: true },
    ),
    training(
      'upcycle',
      'turn a dense checkpoint into a DS-MoE model, and distil it',
      `
The FFNs of a Llama-shaped checkpoint directory (a GGUF file: \`pack\` it, then \`unpack\`) are cut into experts by what fires
together, and trained to imitate the dense model at several active shares at once.

Examples:
  $ weights-tool upcycle weights-tool/train/configs/release.toml
  $ weights-tool upcycle weights-tool/train/configs/release.toml --gpus 2 --set run.stop_after_minutes=50
  $ weights-tool pack runs/release/checkpoint --out packs/release`,
      { gpus: true },
    ),
    training(
      'data',
      'turn text and chats into token shards',
      `
Reads .txt, .jsonl and .parquet files; chats go through the tokenizer's chat template. What repeats is dropped, and a part
is held out for \`eval\`, chosen by the text itself, so that it is the same part every time.

Examples:
  $ weights-tool data weights-tool/train/configs/docs-text.toml
  $ weights-tool data mine.toml --set 'inputs=["books", "chats.jsonl"]' --set held_out=0.02`,
    ),
    training(
      'generate',
      'let a checkpoint write text to distil from',
      `
Many sequences at a time on one GPU, for a set time. For several GPUs start it once on each, with a seed and an output of
its own (CUDA_VISIBLE_DEVICES chooses the GPU), and list the directories in data.sources.

Examples:
  $ weights-tool generate weights-tool/train/configs/teacher-text.toml --set minutes=5
  $ weights-tool generate mine.toml --set seed=2 --set output=data/text-2`,
    ),
    training(
      'eval',
      'measure a checkpoint at every share that it serves',
      `
Perplexity and distance to the teacher on held-out text, zero-shot tasks, the share of experts that is really active, and how
well a cache of experts would do: a table on stdout, evaluation.json and curves in the output directory. The curve and the
use of experts also go into the checkpoint, from where \`pack\` takes them into the manifest.

Examples:
  $ weights-tool eval weights-tool/train/configs/evaluation.toml
  $ weights-tool eval mine.toml --set device=cpu --set items=200 --set resident=0.7`,
    ),
  ]
}

function training(name: string, about: string, examples: string, { gpus = false } = {}): Command {
  const command = new Command(name)
    .description(about)
    .argument('<settings>', 'a TOML file')
    .option('--set <field=value>', 'overrides one setting, such as run.seed=7; repeatable', collect)
    .option('--python <program>', 'a Python that has PyTorch and the rest, to be used as it is')
    .addHelpText('after', SETTINGS + examples)
  if (gpus)
    command.option(
      '--gpus <count>',
      'train on this many GPUs of this machine; the batch stays the same',
      count,
    )
  return command.action(async (settings: string, { set = [], python, gpus }: Flags) => {
    const overrides = set.flatMap((override) => ['--set', override])
    const options = { ...(python !== undefined && { python }), ...(gpus !== undefined && { gpus }) }
    // The trainer has said what was wrong.
    if ((await runTrainer('dsmoe_train', [name, settings, ...overrides], options)) !== 0) process.exitCode = 1
  })
}

function collect(value: string, earlier: readonly string[] = []): readonly string[] {
  return [...earlier, value]
}

function count(text: string): number {
  const value = Number(text)
  if (Number.isInteger(value) && value >= 1) return value
  throw new InvalidArgumentError('a positive whole number is needed')
}
