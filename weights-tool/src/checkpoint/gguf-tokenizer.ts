/**
 * @module
 * The vocabulary inside a GGUF file → an equal tokenizer.json. GGUF keeps tokens and merges of a byte-level BPE, but of
 * the splitting that comes first only its name (`tokenizer.ggml.pre`).
 */
import { z } from 'zod'
import { malformed, unsupported } from './checkpoint.ts'

const tokenId = z.int().nonnegative()

/** The keys of a GGUF file that concern its tokenizer. */
export const GgufTokenizer = z.looseObject({
  'tokenizer.ggml.model': z.string(),
  'tokenizer.ggml.pre': z.string().default('default'),
  'tokenizer.ggml.tokens': z.array(z.string()),
  'tokenizer.ggml.token_type': z.array(z.int()).optional(),
  'tokenizer.ggml.merges': z.array(z.string()).optional(),
  'tokenizer.ggml.bos_token_id': tokenId.optional(),
  'tokenizer.ggml.eos_token_id': tokenId.optional(),
  'tokenizer.ggml.eot_token_id': tokenId.optional(),
  'tokenizer.ggml.add_bos_token': z.boolean().optional(),
  'tokenizer.chat_template': z.string().optional(),
})
export type GgufTokenizer = z.infer<typeof GgufTokenizer>

/** GGUF's token types that are cut out of a text before anything else: special ones, and others that a user added. */
const CONTROL = 3
const USER_DEFINED = 4

const byteLevel = (useRegex: boolean) => ({
  type: 'ByteLevel',
  add_prefix_space: false,
  trim_offsets: true,
  use_regex: useRegex,
})

const LLAMA_3_SPLIT =
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

const LLAMA_3 = {
  type: 'Sequence',
  pretokenizers: [
    { type: 'Split', pattern: { Regex: LLAMA_3_SPLIT }, behavior: 'Isolated', invert: false },
    byteLevel(false),
  ],
}

/** `tokenizer.ggml.pre` → how tokenizer.json says it. */
const PRE_TOKENIZERS = new Map<string, object>([
  ['default', byteLevel(true)],
  ['gpt-2', byteLevel(true)],
  [
    'smollm',
    { type: 'Sequence', pretokenizers: [{ type: 'Digits', individual_digits: true }, byteLevel(true)] },
  ],
  ['llama-bpe', LLAMA_3],
  ['llama3', LLAMA_3],
])

/**
 * The bytes of tokenizer.json.
 *
 * @throws SparsedgeError `checkpoint_unsupported` for another kind of tokenizer, `checkpoint_malformed` for merges that
 * do not belong to the tokens
 */
export function tokenizerFromGguf(theirs: GgufTokenizer): Uint8Array<ArrayBuffer> {
  const model = theirs['tokenizer.ggml.model']
  const pre = theirs['tokenizer.ggml.pre']
  const preTokenizer = PRE_TOKENIZERS.get(pre)
  if (model !== 'gpt2' || !preTokenizer) {
    throw unsupported(
      `the file's tokenizer (${model}, ${pre}) cannot be turned into a tokenizer.json; ` +
        "give the original model's with --tokenizer tokenizer.json",
    )
  }
  const tokens = theirs['tokenizer.ggml.tokens']
  const types = theirs['tokenizer.ggml.token_type'] ?? []
  const vocab = new Map(tokens.map((token, id) => [token, id]))
  if (vocab.size !== tokens.length) throw malformed('the vocabulary of the GGUF file lists a token twice')
  const added = tokens.flatMap((content, id) =>
    types[id] === CONTROL || types[id] === USER_DEFINED
      ? [addedToken(id, content, types[id] === CONTROL)]
      : [],
  )
  const tokenizer = {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: added,
    normalizer: null,
    pre_tokenizer: preTokenizer,
    post_processor: postProcessor(theirs, preTokenizer === LLAMA_3),
    decoder: { ...byteLevel(true), add_prefix_space: true },
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      // Llama 3's vocabulary holds words that its merges do not lead to.
      ignore_merges: preTokenizer === LLAMA_3,
      vocab: Object.fromEntries(vocab),
      merges: (theirs['tokenizer.ggml.merges'] ?? []).map((merge) => mergePair(merge, vocab)),
    },
  }
  return new TextEncoder().encode(JSON.stringify(tokenizer))
}

/** Puts the begin token before every text, where the model was trained so. */
function postProcessor(theirs: GgufTokenizer, byDefault: boolean) {
  const bos = theirs['tokenizer.ggml.bos_token_id']
  const wanted = theirs['tokenizer.ggml.add_bos_token'] ?? byDefault
  const token = bos === undefined ? undefined : theirs['tokenizer.ggml.tokens'][bos]
  if (!wanted || token === undefined) return null
  const special = { SpecialToken: { id: token, type_id: 0 } }
  const text = (id: 'A' | 'B', type_id: number) => ({ Sequence: { id, type_id } })
  return {
    type: 'TemplateProcessing',
    single: [special, text('A', 0)],
    pair: [special, text('A', 0), text('B', 1)],
    special_tokens: { [token]: { id: token, ids: [bos], tokens: [token] } },
  }
}

function addedToken(id: number, content: string, special: boolean) {
  return { id, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special }
}

/** "left right" → [left, right]. Byte-level tokens hold no space of their own. */
function mergePair(merge: string, vocab: ReadonlyMap<string, number>): string[] {
  const pair = merge.split(' ')
  if (pair.length !== 2 || !pair.every((part) => vocab.has(part)) || !vocab.has(pair.join(''))) {
    throw malformed(`the GGUF file's merge ${JSON.stringify(merge)} does not belong to its tokens`)
  }
  return pair
}
