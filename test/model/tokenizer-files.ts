/**
 * Small tokenizers of the two kinds that LLaMA, Mistral and Qwen use, as tokenizer.json would have
 * them.
 */

/**
 * GPT-2's printable stand-ins for bytes: itself where it prints, else the next free character from
 * 256 on.
 */
export const kByteCharacters: readonly string[] = (() => {
  let next = 256
  return Array.from({ length: 256 }, (_, byte) => {
    const prints =
      (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || (byte >= 174 && byte <= 255)
    return String.fromCodePoint(prints ? byte : next++)
  })
})()

const special = (id: number, content: string) => ({
  id,
  content,
  single_word: false,
  lstrip: false,
  rstrip: false,
  normalized: false,
  special: true,
})

/**
 * As of LLaMA 3 and Qwen: every byte is a token, three merges, special tokens 300 and 301. Ids 0 to
 * 255 are bytes.
 */
export function byteLevelTokenizer(): Record<string, unknown> {
  const tokens = [...kByteCharacters]
  const merges: string[] = []
  const merge = (left: string, right: string) => {
    merges.push(`${left} ${right}`)
    tokens.push(left + right)
  }
  merge('t', 'h')
  merge('Ġ', 'th')
  // Half an euro sign: a token that ends inside a character.
  merge(kByteCharacters[0xe2] as string, kByteCharacters[0x82] as string)
  return {
    version: '1.0',
    added_tokens: [special(300, '<|end|>'), special(301, '<|start|>')],
    normalizer: null,
    pre_tokenizer: {
      type: 'Sequence',
      pretokenizers: [
        {
          type: 'Split',
          pattern: { Regex: ' ?\\p{L}+|\\s+|.' },
          behavior: 'Isolated',
          invert: false,
        },
        { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: false },
      ],
    },
    post_processor: null,
    decoder: { type: 'ByteLevel', add_prefix_space: true, trim_offsets: true, use_regex: true },
    model: {
      type: 'BPE',
      unk_token: null,
      vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
      merges,
    },
  }
}

/**
 * As of LLaMA 2 and Mistral: words begin with `▁`, unknown characters fall back to bytes, <s> comes
 * first. Bytes are 3 to 258.
 */
export function sentencePieceTokenizer(): Record<string, unknown> {
  const bytes = Array.from(
    { length: 256 },
    (_, byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, '0')}>`,
  )
  const pieces = ['▁', 'a', 'b', 'c', '▁a', '▁ab', '▁▁', '▁▁▁▁', 'é', '�']
  const tokens = ['<unk>', '<s>', '</s>', ...bytes, ...pieces]
  return {
    version: '1.0',
    added_tokens: [special(0, '<unk>'), special(1, '<s>'), special(2, '</s>')],
    normalizer: {
      type: 'Sequence',
      normalizers: [
        { type: 'Prepend', prepend: '▁' },
        { type: 'Replace', pattern: { String: ' ' }, content: '▁' },
      ],
    },
    pre_tokenizer: null,
    post_processor: {
      type: 'TemplateProcessing',
      single: [{ SpecialToken: { id: '<s>', type_id: 0 } }, { Sequence: { id: 'A', type_id: 0 } }],
      pair: [{ Sequence: { id: 'A', type_id: 0 } }, { Sequence: { id: 'B', type_id: 1 } }],
      special_tokens: { '<s>': { id: '<s>', ids: [1], tokens: ['<s>'] } },
    },
    decoder: {
      type: 'Sequence',
      decoders: [
        { type: 'Replace', pattern: { String: '▁' }, content: ' ' },
        { type: 'ByteFallback' },
        { type: 'Fuse' },
        { type: 'Strip', content: ' ', start: 1, stop: 0 },
      ],
    },
    model: {
      type: 'BPE',
      unk_token: '<unk>',
      byte_fallback: true,
      fuse_unk: true,
      vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
      merges: ['▁ a', '▁a b', '▁ ▁', '▁▁ ▁▁'],
    },
  }
}
