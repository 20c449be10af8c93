/**
 * @module
 * Text to token ids and back, from the bytes of a model's tokenizer.json. Byte-level BPE (GPT-2, SmolLM2, Llama 3) is
 * handled in a compact form; every other kind by Hugging Face's library. Which of them it is makes no difference to the
 * ids, only to the heap.
 */
import { z } from 'zod'
import { SparsedgeError } from '../errors.ts'
import { AddedToken, AddedTokens } from './added-tokens.ts'
import { ByteBpe } from './byte-bpe.ts'
import { ByteDetokenizer, type Detokenizer } from './detokenizer.ts'
import { JsonCursor } from './json-cursor.ts'
import { LibraryVocabulary } from './library.ts'
import { type Cutter, cutterFor } from './pretokenise.ts'

/** What knows a model's words: everything but added tokens. */
export interface Vocabulary {
  readonly kind: 'compact' | 'library'
  /** Bytes that one token covers at most; infinite where that is not known. */
  readonly longest: number
  /** Appends the ids of a text without added tokens. */
  encode(text: string, into: number[]): void
  /** For one text. */
  detokenizer(): Detokenizer
}

/** tokenizer.json but for the vocabulary and merges. Kinds are told apart by literals; what is not known goes to the library. */
const Tokens = z.object({
  added_tokens: z.array(AddedToken).max(4096).nullish(),
  post_processor: z.unknown(),
})

/** Only what it puts before a text counts: nothing follows a text that is to be continued. */
const PostProcessor = z.discriminatedUnion('type', [
  z.object({ type: z.literal('ByteLevel') }),
  z.object({
    type: z.literal('TemplateProcessing'),
    single: z.array(z.object({ SpecialToken: z.object({ id: z.string() }).optional() })).max(16),
  }),
])
const PostProcessors = z.union([
  z.null().transform(() => []),
  z
    .object({ type: z.literal('Sequence'), processors: z.array(PostProcessor) })
    .transform((it) => it.processors),
  PostProcessor.transform((it) => [it]),
])

/** Byte-level BPE as the compact form takes it. */
const ByteLevelBpe = z.object({
  normalizer: z.null().optional(),
  decoder: z.object({ type: z.literal('ByteLevel') }),
  model: z.object({
    type: z.literal('BPE'),
    dropout: z.null().optional(),
    unk_token: z.null().optional(),
    continuing_subword_prefix: z.union([z.null(), z.literal('')]).optional(),
    end_of_word_suffix: z.union([z.null(), z.literal('')]).optional(),
    byte_fallback: z.literal(false).optional(),
    ignore_merges: z.boolean().default(false),
  }),
})

export class Tokenizer {
  readonly #vocabulary: Vocabulary
  readonly #added: AddedTokens
  readonly #longest: number
  /** What every sequence begins with, unless a chat template writes it: Llama's `<|begin_of_text|>`; often nothing. */
  readonly beginning: readonly number[]

  constructor(vocabulary: Vocabulary, added: AddedTokens, beginning: readonly number[]) {
    this.#vocabulary = vocabulary
    this.#added = added
    this.#longest = Math.max(vocabulary.longest, added.longest)
    this.beginning = beginning
  }

  get kind(): Vocabulary['kind'] {
    return this.#vocabulary.kind
  }

  /** The fewest tokens that a text of so many UTF-16 code units can become, but for characters that the vocabulary lacks: a
   * bound that costs nothing. */
  fewest(length: number): number {
    return Math.ceil(length / this.#longest)
  }

  /**
   * Text to ids. Added tokens in the text (`<|im_end|>`) become their ids, unless it was {@link Tokenizer.protect}ed.
   *
   * @throws SparsedgeError `invalid_request` if ordinary text is taken for a control token
   */
  encode(text: string): number[] {
    const ids: number[] = []
    for (const part of this.#added.split(text)) {
      if (typeof part === 'number') ids.push(part)
      else this.#ordinary(this.#added.restore(part), ids)
    }
    return ids
  }

  /** Text that {@link Tokenizer.encode} takes for ordinary text throughout, also as a part of another text: no control token
   * begins in it, whatever follows. */
  protect(text: string): string {
    return this.#added.protect(text)
  }

  /** Ids to text, control tokens included. */
  decode(tokens: readonly number[]): string {
    const detokenizer = this.detokenizer(true)
    return tokens.map((token) => detokenizer.push(token)).join('') + detokenizer.end()
  }

  /** For the tokens of one text. @param control whether control tokens show */
  detokenizer(control: boolean): Detokenizer {
    const inner = this.#vocabulary.detokenizer()
    const added = this.#added.byId
    return {
      push(token) {
        const special = added.get(token)
        if (!special) return inner.push(token)
        return special.special && !control ? '' : inner.end() + special.content
      },
      end: () => inner.end(),
    }
  }

  #ordinary(text: string, into: number[]): void {
    const start = into.length
    this.#vocabulary.encode(text, into)
    for (let i = start; i < into.length; i++) {
      if (!this.#added.byId.get(into[i])?.special) continue
      throw new SparsedgeError(
        'invalid_request',
        'the text holds what this model takes for a control token; leave it out',
      )
    }
  }
}

class ByteVocabulary implements Vocabulary {
  readonly kind = 'compact'
  readonly longest: number
  readonly #cut: Cutter
  readonly #bpe: ByteBpe

  constructor(cut: Cutter, bpe: ByteBpe) {
    this.#cut = cut
    this.#bpe = bpe
    this.longest = bpe.longest
  }

  encode(text: string, into: number[]): void {
    for (const word of this.#cut(text)) this.#bpe.encode(word, into)
  }

  detokenizer(): Detokenizer {
    return new ByteDetokenizer((token) => this.#bpe.word(token))
  }
}

/**
 * Builds the tokenizer of a model. The bytes are not kept.
 *
 * @param bytes tokenizer.json
 * @param vocab ids are below this
 * @throws SparsedgeError `manifest_malformed` if the file is not a tokenizer.json or does not fit the model
 */
export function createTokenizer(bytes: Uint8Array, vocab: number): Tokenizer {
  try {
    const file = readFile(bytes)
    const { added_tokens, post_processor } = Tokens.parse(file.rest)
    const tokens = added_tokens ?? []
    const beyond = tokens.find((token) => token.id >= vocab)
    if (beyond) throw new Error(`added token ${beyond.id} is not one of the model's ${vocab}`)
    const added = new AddedTokens(tokens)
    const vocabulary = compactVocabulary(file, vocab, added) ?? libraryVocabulary(bytes, vocab)
    return new Tokenizer(vocabulary, added, beginning(post_processor ?? null, added))
  } catch (cause) {
    if (cause instanceof SparsedgeError) throw cause
    const reason = cause instanceof z.ZodError ? z.prettifyError(cause) : String(cause)
    throw new SparsedgeError('manifest_malformed', `tokenizer.json: ${reason}`, {}, { cause })
  }
}

interface TokenizerFile {
  /** Everything but `model.vocab` and `model.merges`. */
  readonly rest: { readonly [key: string]: unknown }
  /** Where those two are. */
  readonly vocab: JsonCursor | undefined
  readonly merges: JsonCursor | undefined
}

function readFile(bytes: Uint8Array): TokenizerFile {
  let vocab: JsonCursor | undefined
  let merges: JsonCursor | undefined
  const members: [string, unknown][] = []
  const cursor = new JsonCursor(bytes)
  cursor.object((key) => {
    if (key !== 'model') {
      members.push([key, cursor.value()])
      return
    }
    const model: [string, unknown][] = []
    cursor.object((name) => {
      if (name === 'vocab') vocab = cursor.copy()
      else if (name === 'merges') merges = cursor.copy()
      else {
        model.push([name, cursor.value()])
        return
      }
      cursor.skip()
    })
    members.push([key, Object.fromEntries(model)])
  })
  if (!cursor.ended) cursor.fail('the end')
  return { rest: Object.fromEntries(members), vocab, merges }
}

/** @returns undefined where the tokenizer is of another kind, or not one that the compact form is known to be equal to */
function compactVocabulary(
  { rest, vocab, merges }: TokenizerFile,
  ids: number,
  added: AddedTokens,
): Vocabulary | undefined {
  const config = ByteLevelBpe.safeParse(rest)
  const cut = cutterFor(rest.pre_tokenizer)
  if (!config.success || !cut || !vocab || !merges) return undefined
  const wholeWords = config.data.model.ignore_merges
  const bpe = ByteBpe.read(vocab, merges, ids, wholeWords, (id) => added.byId.has(id))
  return bpe && new ByteVocabulary(cut, bpe)
}

function libraryVocabulary(bytes: Uint8Array, ids: number): Vocabulary {
  return new LibraryVocabulary(z.looseObject({}).parse(JSON.parse(new TextDecoder().decode(bytes))), ids)
}

function beginning(postProcessor: unknown, added: AddedTokens): number[] {
  const ids: number[] = []
  for (const step of PostProcessors.parse(postProcessor)) {
    if (step.type !== 'TemplateProcessing') continue
    for (const { SpecialToken } of step.single) {
      if (!SpecialToken) break
      const id = added.idOf(SpecialToken.id)
      if (id === undefined)
        throw new Error(`the post-processor names ${SpecialToken.id}, which is not an added token`)
      ids.push(id)
    }
  }
  return ids
}
