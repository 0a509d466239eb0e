// A Hugging Face LLaMA folder as the GGUF file that llama.cpp reads:
//   node bench/peers/convert.mjs FOLDER FILE.gguf [F16|BF16|Q8_0]
import { pathToFileURL } from 'node:url'
import { reportFailure, ScriptError } from '../../scripts/progress.mjs'
import { toBf16, toF16 } from './float16.mjs'
import { gguf, writeGguf } from './gguf.mjs'
import { readHfFolder, valuesOf } from './hf-folder.mjs'

/** Names of the tensors: Hugging Face to GGUF, N a layer. */
const kModelTensors = {
  'model.embed_tokens.weight': 'token_embd.weight',
  'model.norm.weight': 'output_norm.weight',
  'lm_head.weight': 'output.weight',
}
const kLayerTensors = {
  input_layernorm: 'attn_norm',
  'self_attn.q_proj': 'attn_q',
  'self_attn.k_proj': 'attn_k',
  'self_attn.v_proj': 'attn_v',
  'self_attn.o_proj': 'attn_output',
  post_attention_layernorm: 'ffn_norm',
  'mlp.gate_proj': 'ffn_gate',
  'mlp.up_proj': 'ffn_up',
  'mlp.down_proj': 'ffn_down',
}

/** `general.file_type`. */
const kFileTypes = { F16: 1, BF16: 32, Q8_0: 7 }
/** Elements that share a scale in Q8_0. */
const kBlock = 32

/**
 * Converts a folder. Matrices become `type`, norms float32. Token ids mean the same to both
 * programs, the text of a token does not: see `vocabulary`. Throws ScriptError for a model that
 * needs what is not converted here.
 * @param {string} dir a LlamaForCausalLM without biases and RoPE scaling
 * @param {string} file the GGUF file to write
 * @param {keyof kFileTypes} type
 */
export function convertToGguf(dir, file, type) {
  const { config, tensors } = readHfFolder(dir)
  refuseUnsupported(config, dir)
  const headDim = config.head_dim ?? config.hidden_size / config.num_attention_heads
  const nKvHeads = config.num_key_value_heads ?? config.num_attention_heads

  const converted = [...tensors].map(([name, tensor]) => {
    const isNorm = tensor.shape.length === 1
    const isRotated = /\.(q|k)_proj\.weight$/.test(name)
    return {
      name: ggufName(name),
      shape: tensor.shape,
      type: isNorm ? 'F32' : type,
      bytes: () =>
        isNorm
          ? new Uint8Array(valuesOf(tensor).buffer)
          : matrixBytes(tensor, type, isRotated ? headDim : null),
    }
  })
  writeGguf(
    file,
    {
      'general.architecture': gguf.string('llama'),
      'general.file_type': gguf.uint32(kFileTypes[type]),
      'llama.vocab_size': gguf.uint32(config.vocab_size),
      'llama.context_length': gguf.uint32(config.max_position_embeddings),
      'llama.embedding_length': gguf.uint32(config.hidden_size),
      'llama.block_count': gguf.uint32(config.num_hidden_layers),
      'llama.feed_forward_length': gguf.uint32(config.intermediate_size),
      'llama.attention.head_count': gguf.uint32(config.num_attention_heads),
      'llama.attention.head_count_kv': gguf.uint32(nKvHeads),
      'llama.attention.key_length': gguf.uint32(headDim),
      'llama.attention.value_length': gguf.uint32(headDim),
      'llama.attention.layer_norm_rms_epsilon': gguf.float32(config.rms_norm_eps),
      'llama.rope.dimension_count': gguf.uint32(headDim),
      'llama.rope.freq_base': gguf.float32(config.rope_theta),
      ...vocabulary(config),
    },
    converted,
  )
}

/**
 * Rows of q_proj or k_proj in the order that llama.cpp's RoPE wants. Hugging Face rotates dimension
 * i of a head together with i + head_dim / 2; llama.cpp, for the architecture "llama", rotates
 * neighbours 2i and 2i + 1. Scores do not change, as q and k are permuted alike.
 * @template {Float32Array | Uint16Array} T
 * @param {T} matrix (rows, columns), rows a multiple of headDim
 * @param {number} columns
 * @param {number} headDim
 * @returns {T}
 */
export function interleaveRotaryRows(matrix, columns, headDim) {
  const out = matrix.slice()
  const rows = matrix.length / columns
  const half = headDim / 2
  for (let row = 0; row < rows; row++) {
    const inHead = row % headDim
    const target = row - inHead + (inHead < half ? 2 * inHead : 2 * (inHead - half) + 1)
    out.set(matrix.subarray(row * columns, (row + 1) * columns), target * columns)
  }
  return out
}

function matrixBytes(tensor, type, headDim) {
  const columns = tensor.shape[1]
  const stored = valuesOf(tensor)
  const values = headDim === null ? stored : interleaveRotaryRows(stored, columns, headDim)
  if (type === 'Q8_0') return q8Blocks(values, columns)
  const encode = type === 'F16' ? toF16 : toBf16
  const bits = new Uint16Array(values.length)
  for (let i = 0; i < values.length; i++) bits[i] = encode(values[i])
  return new Uint8Array(bits.buffer)
}

/** Blocks of a float16 scale and 32 codes of -127 to 127. Source: ggml, block_q8_0. */
function q8Blocks(values, columns) {
  if (columns % kBlock !== 0) throw new ScriptError(`Q8_0: rows of ${columns}, not of blocks of 32`)
  const bytes = Buffer.alloc((values.length / kBlock) * (2 + kBlock))
  for (let first = 0, at = 0; first < values.length; first += kBlock, at += 2 + kBlock) {
    const block = values.subarray(first, first + kBlock)
    const scale = block.reduce((most, x) => Math.max(most, Math.abs(x)), 0) / 127
    bytes.writeUInt16LE(toF16(scale), at)
    block.forEach((x, i) => {
      bytes.writeInt8(scale > 0 ? Math.round(x / scale) : 0, at + 2 + i)
    })
  }
  return bytes
}

function ggufName(name) {
  if (kModelTensors[name]) return kModelTensors[name]
  const [, layer, role] = /^model\.layers\.(\d+)\.(.+)\.weight$/.exec(name) ?? []
  const known = kLayerTensors[role]
  if (!known) throw new ScriptError(`${name}: no tensor of a LLaMA model without biases`)
  return `blk.${layer}.${known}.weight`
}

/**
 * A vocabulary that llama.cpp loads. Only token ids are ever exchanged, so the texts are made up;
 * but a file without a tokenizer ends llama.cpp's process, and so does one of this kind without a
 * merge.
 */
function vocabulary({ vocab_size: size, bos_token_id: bos, eos_token_id: eos }) {
  const tokens = Array.from({ length: size }, (_, id) => `<${id}>`)
  return {
    'tokenizer.ggml.model': gguf.string('gpt2'),
    'tokenizer.ggml.pre': gguf.string('default'),
    'tokenizer.ggml.tokens': gguf.strings(tokens),
    'tokenizer.ggml.token_type': gguf.int32s(tokens.map(() => 1)),
    'tokenizer.ggml.merges': gguf.strings(['< 0']),
    'tokenizer.ggml.bos_token_id': gguf.uint32(bos),
    'tokenizer.ggml.eos_token_id': gguf.uint32(eos),
    'tokenizer.ggml.add_bos_token': gguf.bool(false),
  }
}

function refuseUnsupported(config, dir) {
  const wanted = {
    model_type: ['llama'],
    attention_bias: [undefined, false],
    mlp_bias: [undefined, false],
    rope_scaling: [undefined, null],
    tie_word_embeddings: [undefined, false],
  }
  for (const [key, values] of Object.entries(wanted)) {
    if (values.includes(config[key])) continue
    throw new ScriptError(
      `${dir}: ${key} is ${JSON.stringify(config[key])}, which is not converted`,
    )
  }
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  const [dir, file, type = 'F16'] = process.argv.slice(2)
  try {
    if (!file || !kFileTypes[type]) {
      throw new ScriptError('usage: node bench/peers/convert.mjs FOLDER FILE.gguf [F16|BF16|Q8_0]')
    }
    convertToGguf(dir, file, type)
  } catch (error) {
    reportFailure(error)
    process.exitCode = 1
  }
}
