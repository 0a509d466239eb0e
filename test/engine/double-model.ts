import { join } from 'node:path'
import { headsOf, type ModelConfig, readModelConfig } from '../../lib/model/config'
import { layerPlaces } from '../../lib/model/layer-kinds'
import { ropeFrequencies } from '../../lib/model/rope-frequencies'
import { type PolicySpec, resolvePolicy } from '../../lib/policy/index'
import type { Compression, PrecisionClass, SaliencyMetric } from '../../lib/policy/policy'
import { deriveSeed, type Seed, toSeed } from '../../lib/random'
import {
  attentionSinks,
  causalConv,
  clampedSwiglu,
  embedding,
  f32ToF16,
  fromF16,
  gatedDelta,
  geluGate,
  linear,
  mixedAttention,
  packSegment,
  probeAttention,
  rmsNorm,
  rope,
  ropeTable,
  routeExperts,
  type Segment,
  type SegmentFormat,
  selectiveScan,
  selectSalient,
  sigmoidGate,
  siluGate,
} from '../../lib/reference/index'
import { readSafetensors, valuesOf } from './model-copies'

/** A checkpoint in double precision: the engine again, the plain way, out of the reference's ops. */
export class DoubleModel {
  readonly config: ModelConfig
  readonly #weights: ReadonlyMap<string, Float64Array>
  readonly #experts = new Map<string, [Float64Array, Float64Array, Float64Array]>()

  private constructor(config: ModelConfig, weights: ReadonlyMap<string, Float64Array>) {
    this.config = config
    this.#weights = weights
  }

  static async load(dir: string): Promise<DoubleModel> {
    const tensors = readSafetensors(join(dir, 'model.safetensors'))
    // Of a model that sees images its text model, by the names of one that does not.
    const nameOf = (name: string) =>
      name
        .replace(/^(language_model\.model|model\.language_model|model\.text_model)\./, 'model.')
        .replace(/^language_model\./, '')
    const values = [...tensors].map(([name, tensor]) => [nameOf(name), valuesOf(tensor)] as const)
    return new DoubleModel(await readModelConfig(dir), new Map(values))
  }

  /**
   * The tensor of this name, or its part of the one that holds it with others; undefined where the
   * architecture has none.
   */
  weight(name: string): Float64Array | undefined {
    const mixed = name.match(/^(.*\.linear_attn)\.in_proj_(qkv|z|a|b)\.weight$/)
    if (mixed && !this.#weights.has(name)) return this.#ofKeyHeads(mixed[1]!, mixed[2]!)
    const fused = name.match(/^(.*)\.(q|k|v|gate|up)_proj\.weight$/)
    const { fusedProjections } = this.config
    if (fusedProjections === 'none' || !fused) return this.#weights.get(name)
    const [, prefix, which] = fused as unknown as [string, string, string]
    if (fusedProjections !== 'all' && which.length === 1) return this.#weights.get(name)
    const { hiddenSize, headDim, nHeads, nKvHeads, intermediateSize, mlpNames } = this.config
    const [joint, parts] =
      which.length === 1
        ? ['qkv_proj', { q: nHeads * headDim, k: nKvHeads * headDim, v: nKvHeads * headDim }]
        : [mlpNames.gateUp, { gate: intermediateSize, up: intermediateSize }]
    let row = 0
    for (const [part, height] of Object.entries(parts as Record<string, number>)) {
      const all = this.#weights.get(`${prefix}.${joint}.weight`)!
      if (part === which) return all.subarray(row * hiddenSize, (row + height) * hiddenSize)
      row += height
    }
    return undefined
  }

  /** Qwen3-Next has them key head by key head: q, k, and of its value heads v and z; b and a. */
  #ofKeyHeads(name: string, which: string): Float64Array {
    const { hiddenSize, recurrence } = this.config
    const { nKeyHeads, nValueHeads, keyDim, valueDim } = recurrence!
    const perHead = nValueHeads / nKeyHeads
    const sizes =
      which.length === 1 && which !== 'z'
        ? { b: perHead, a: perHead }
        : { q: keyDim, k: keyDim, v: perHead * valueDim, z: perHead * valueDim }
    const parts = Object.entries(sizes)
    const all = this.#weights.get(`${name}.in_proj_${parts.length === 2 ? 'ba' : 'qkvz'}.weight`)!
    const height = parts.reduce((sum, [, own]) => sum + own, 0)
    const rows: number[] = []
    for (const part of which) {
      for (let head = 0; head < nKeyHeads; head++) {
        let row = head * height
        for (const [other, own] of parts) {
          if (other === part) rows.push(...Array.from({ length: own }, (_, i) => row + i))
          row += own
        }
      }
    }
    return Float64Array.from(
      rows.flatMap((row) => [...all.subarray(row * hiddenSize, (row + 1) * hiddenSize)]),
    )
  }

  /** x W^T + bias, x (m, k). */
  project(name: string, x: Float64Array, width: number): Float64Array {
    const weight = this.weight(`${name}.weight`)!
    const shape = { m: x.length / width, n: weight.length / width, k: width }
    return linear({ x, weight, bias: this.weight(`${name}.bias`), ...shape })
  }

  /** RMS norm over `width`; x itself where the model has no such norm. */
  norm(name: string, x: Float64Array, width: number): Float64Array {
    const weight = this.weight(`${name}.weight`)
    if (!weight) return x
    const offset = this.config.unitOffsetNorms ? 1 : 0
    const own = weight.map((value) => offset + value)
    return rmsNorm({ x, weight: own, width, eps: this.config.rmsNormEps })
  }

  /** The same without weights. */
  plainNorm(x: Float64Array, width: number): Float64Array {
    const weight = new Float64Array(width).fill(1)
    return rmsNorm({ x, weight, width, eps: this.config.rmsNormEps })
  }

  /** What the MLP of a layer, or its experts, makes of normed rows of the residual stream, and of these as they are. */
  mlp(layer: number, x: Float64Array, stream: Float64Array): Float64Array {
    const { hiddenSize, experts, mlpNames } = this.config
    const intermediateSize = this.config.intermediateSizes[layer]
    const name = `model.layers.${layer}`
    if (experts?.besideMlp) return this.#besideMlp(name, x, stream)
    if (!experts?.layers[layer]) {
      const mlp = `${name}.${mlpNames.block}`
      const gate = this.project(`${mlp}.gate_proj`, x, hiddenSize)
      const up = this.project(`${mlp}.up_proj`, x, hiddenSize)
      return this.project(`${mlp}.${mlpNames.down}`, this.#gated({ gate, up }), intermediateSize)
    }
    const block = `${name}.${experts.names.block}`
    return add(this.#shared(block, x), this.#ofExperts(block, x, x))
  }

  /** Gemma 4's: an MLP, and experts that read the residual stream by themselves. */
  #besideMlp(name: string, x: Float64Array, stream: Float64Array): Float64Array {
    const { hiddenSize, experts } = this.config
    const names = experts!.names.besideMlp!
    const norm = (which: string, y: Float64Array) => this.norm(`${name}.${which}`, y, hiddenSize)
    const scale = this.weight(`${name}.${names.routerNorm}`)!
    const routed = this.plainNorm(stream, hiddenSize).map(
      (value, i) => (value * scale[i % hiddenSize]) / Math.sqrt(hiddenSize),
    )
    const given = this.#ofExperts(name, norm(names.input, stream), routed)
    return add(norm(names.mlpOutput, this.#shared(name, x)), norm(names.output, given))
  }

  /** What a row's experts make of it, chosen by what the router reads. */
  #ofExperts(block: string, x: Float64Array, routed: Float64Array): Float64Array {
    const { hiddenSize } = this.config
    const experts = this.config.experts!
    const { names, count: nExperts, perRow: nChosen, scores, normalized, leastSum, scale } = experts
    const logits = this.project(`${block}.${names.router}`, routed, hiddenSize)
    const correction = names.correction
      ? { correction: this.weight(`${block}.${names.correction.name}`)! }
      : {}
    const { weights, experts: chosen } = routeExperts({
      ...{ logits, nExperts, nChosen, ...correction, scores, normalized, leastSum, scale },
    })
    const scales = names.besideMlp && this.weight(`${block}.${names.besideMlp.scales}`)
    const out = new Float64Array(x.length)
    for (const [pair, expert] of chosen.entries()) {
      const row = Math.floor(pair / nChosen)
      const own = x.subarray(row * hiddenSize, (row + 1) * hiddenSize)
      const [gateProj, upProj, downProj] = this.#matricesOf(block, expert)
      const [gateBias, upBias, downBias] = this.#biasesOf(block, expert)
      const gate = product(own, gateProj, gateBias)
      const up = product(own, upProj, upBias)
      const given = product(this.#gated({ gate, up }), downProj, downBias)
      const weight = weights[pair] * (scales?.[expert] ?? 1)
      for (const [c, value] of given.entries()) out[row * hiddenSize + c] += weight * value
    }
    return out
  }

  /** What the expert of all rows makes of them; 0 where there is none. */
  #shared(block: string, x: Float64Array): Float64Array {
    const { names, sharedSize } = this.config.experts!
    const { hiddenSize } = this.config
    if (names.shared === null || sharedSize === 0) return new Float64Array(x.length)
    const { joint } = names.shared
    if (joint) {
      const name = `${block.slice(0, block.lastIndexOf('.'))}.${joint.block}`
      const both = this.project(`${name}.${joint.gateUp}`, x, hiddenSize)
      const half = (part: 0 | 1) => both.filter((_, i) => Math.floor(i / sharedSize) % 2 === part)
      const gated = this.#gated({ gate: half(0), up: half(1) })
      return this.project(`${name}.${joint.down}`, gated, sharedSize)
    }
    const name = `${block}.${names.shared.name}`
    const gate = this.project(`${name}.gate_proj`, x, hiddenSize)
    const up = this.project(`${name}.up_proj`, x, hiddenSize)
    const given = this.project(`${name}.down_proj`, this.#gated({ gate, up }), sharedSize)
    if (names.shared.gate === null) return given
    const logits = this.project(`${block}.${names.shared.gate}`, x, hiddenSize)
    return given.map((value, i) => value / (1 + Math.exp(-logits[Math.floor(i / hiddenSize)]!)))
  }

  /** Gate, up and down of an expert, (out, in) each. */
  #matricesOf(block: string, expert: number): [Float64Array, Float64Array, Float64Array] {
    const key = `${block}.${expert}`
    const known = this.#experts.get(key)
    if (known) return known
    const matrices = this.#readMatricesOf(block, expert)
    this.#experts.set(key, matrices)
    return matrices
  }

  #readMatricesOf(block: string, expert: number): [Float64Array, Float64Array, Float64Array] {
    const experts = this.config.experts!
    const { names, count } = experts
    const { tensors } = names
    const isJoint = 'gateUp' in tensors && this.weight(`${block}.${tensors.gateUp}`) !== undefined
    if (!isJoint) {
      const { gateProj, upProj, downProj } = 'gateUp' in tensors ? tensors.own! : tensors
      const own = (name: string) => this.weight(`${block}.experts.${expert}.${name}.weight`)!
      return [own(gateProj), own(upProj), own(downProj)]
    }
    const [both, down] = [tensors.gateUp, tensors.down].map((name) => {
      const all = this.weight(`${block}.${name}`)!
      return all.subarray((expert * all.length) / count, ((expert + 1) * all.length) / count)
    })
    if (tensors.inTurnsWithBiases) {
      const rows = transposed(both, this.config.hiddenSize)
      const [gate, up] = everyOther(rows, this.config.hiddenSize)
      return [gate, up, transposed(down, experts.intermediateSize)]
    }
    return [both.subarray(0, both.length / 2), both.subarray(both.length / 2), down]
  }

  /** Biases of the same; none where the architecture has none. */
  #biasesOf(block: string, expert: number): (Float64Array | undefined)[] {
    const { names, intermediateSize } = this.config.experts!
    const { tensors } = names
    if (!('gateUp' in tensors && tensors.inTurnsWithBiases)) return []
    const own = (name: string, width: number) =>
      this.weight(`${block}.${name}_bias`)!.subarray(expert * width, (expert + 1) * width)
    const [gate, up] = everyOther(own(tensors.gateUp, 2 * intermediateSize), 1)
    return [gate, up, own(tensors.down, this.config.hiddenSize)]
  }

  #gated(rows: { gate: Float64Array; up: Float64Array }): Float64Array {
    const { activation } = this.config
    if (activation === 'silu') return siluGate(rows)
    return activation === 'gelu_tanh' ? geluGate(rows) : clampedSwiglu({ ...rows, ...activation })
  }

  /** What each layer reads of tokens beside the residual stream that they begin, (n_layers, rows, width) each; none where there is nothing. */
  perLayerInputs(ids: readonly number[], x: Float64Array): Float64Array[] {
    const { perLayerInputs, nLayers, hiddenSize, rmsNormEps } = this.config
    if (!perLayerInputs) return []
    const { width } = perLayerInputs
    const all = nLayers * width
    const weight = this.weight('model.embed_tokens_per_layer.weight')!
    const own = embedding({ ids, weight, width: all, scale: Math.sqrt(width) })
    const projected = this.project('model.per_layer_model_projection', x, hiddenSize).map(
      (value) => value / Math.sqrt(hiddenSize),
    )
    const normWeight = this.weight('model.per_layer_projection_norm.weight')!
    const normed = rmsNorm({ x: projected, weight: normWeight, width, eps: rmsNormEps })
    const both = own.map((value, i) => (value + normed[i]) / Math.SQRT2)
    return Array.from({ length: nLayers }, (_, layer) =>
      both.filter((_, i) => Math.floor((i % all) / width) === layer),
    )
  }

  /** The residual stream behind what a layer makes of its input of each token. */
  addPerLayer(name: string, x: Float64Array, input: Float64Array | undefined): Float64Array {
    const { hiddenSize, perLayerInputs } = this.config
    if (!input || !perLayerInputs) return x
    const gate = this.project(`${name}.per_layer_input_gate`, x, hiddenSize)
    const gated = this.#gated({ gate, up: input })
    const given = this.project(`${name}.per_layer_projection`, gated, perLayerInputs.width)
    return add(x, this.norm(`${name}.post_per_layer_input_norm`, given, hiddenSize))
  }

  /** Logits of rows of the residual stream. */
  logits(x: Float64Array): Float64Array {
    const { hiddenSize, tieWordEmbeddings, logitsScale, logitsCap: cap } = this.config
    const head = tieWordEmbeddings ? 'model.embed_tokens' : 'lm_head'
    const logits = this.project(head, this.norm('model.norm', x, hiddenSize), hiddenSize)
    const scaled = logits.map((logit) => logitsScale * logit)
    return cap === 0 ? scaled : scaled.map((logit) => cap * Math.tanh(logit / cap))
  }
}

/** One layer's cache: what is packed, and the rows (n_kv_heads * head_dim) of the tail. */
interface LayerCache {
  packed: Segment[]
  /** what the tokens on their way attend to */
  seen: Segment[]
  tailK: number[]
  tailV: number[]
  /** the window's probe rows so far */
  probeQ: number[]
  probeLse: number[]
}

/** A recurrent layer's state, and the last inputs of its convolution; none before the first token. */
interface LayerState {
  state?: Float64Array
  before?: Float64Array
}

/** Keys and values of the tokens on their way. */
interface KeysAndValues {
  k: Float64Array
  v: Float64Array
}

/** Query heads, K and V of the tokens on their way. */
interface Heads {
  q: Float64Array
  /** What the attention output is gated by; null where it is not. */
  gate: Float64Array | null
  /** null: they are another layer's. */
  kv: KeysAndValues | null
}

/** A context and its cache in double precision. Algs. 2 and 3 of ZipCache (arXiv 2405.14256), and the next turns. */
export class DoubleSequence {
  readonly #model: DoubleModel
  readonly #compression: Compression | null
  readonly #isHalf: boolean
  readonly #seed: Seed
  readonly #layers: LayerCache[]
  readonly #states: LayerState[]
  #tailStart = 0
  #tailLength = 0
  #nGroups = 0

  constructor(model: DoubleModel, spec: PolicySpec, seed = 0) {
    const policy = resolvePolicy(spec)
    this.#model = model
    this.#compression = policy.compression
    this.#isHalf = policy.tail === 'f16'
    this.#seed = toSeed(seed)
    const empty = () => ({ packed: [], seen: [], tailK: [], tailV: [], probeQ: [], probeLse: [] })
    this.#layers = Array.from({ length: model.config.nLayers }, empty)
    this.#states = this.#layers.map(() => ({}))
  }

  get length(): number {
    return this.#tailStart + this.#tailLength
  }

  /** Takes tokens in and returns the logits after each: (ids.length, vocab_size). */
  append(ids: readonly number[]): Float64Array {
    const { config } = this.#model
    const { hiddenSize } = config
    const n = ids.length
    const isPrompt =
      n > 1 && this.#compression !== null && this.#tailLength + n >= this.#compression.window
    const embeddings = this.#model.weight('model.embed_tokens.weight')!
    const { embeddingScale: scale, norms } = config
    let x = embedding({ ids, weight: embeddings, width: hiddenSize, scale })
    const inputs = this.#model.perLayerInputs(ids, x)
    for (let layer = 0; layer < config.nLayers; layer++) {
      const name = `model.layers.${layer}`
      const norm = (which: string | null, y: Float64Array) =>
        which === null ? y : this.#model.norm(`${name}.${which}`, y, hiddenSize)
      const normed = norm(norms.attention, x)
      const output = config.recurrence?.layers[layer]
        ? this.#recur(layer, name, normed)
        : this.#attention(layer, name, normed, isPrompt)
      x = add(x, norm(norms.attentionOutput, output))
      x = add(x, norm(norms.mlpOutput, this.#model.mlp(layer, norm(norms.mlp, x), x)))
      x = this.#model.addPerLayer(name, x, inputs[layer])
      const scalar = this.#model.weight(`${name}.layer_scalar`)?.[0] ?? 1
      x = x.map((value) => scalar * value)
    }
    this.#tailLength += n
    if (isPrompt || (n === 1 && this.#tailLength === this.#compression?.window)) this.#endGroup()
    return this.#model.logits(x)
  }

  #attention(layer: number, name: string, normed: Float64Array, isPrompt: boolean): Float64Array {
    const { config } = this.#model
    const n = normed.length / config.hiddenSize
    const { kv, ...heads } = this.#heads(layer, name, normed)
    const attended = this.#attendTo(layer, heads.q, kv, n, isPrompt)
    const { gate } = heads
    const gated = gate ? sigmoidGate({ gate, x: attended }) : attended
    const width = config.nHeads * headsOf(config, layer).headDim
    return this.#model.project(`${name}.self_attn.o_proj`, gated, width)
  }

  /** A layer without keys sees what their layer saw. */
  #attendTo(
    layer: number,
    q: Float64Array,
    kv: KeysAndValues | null,
    n: number,
    isPrompt: boolean,
  ): Float64Array {
    const source = this.#model.config.kvSources[layer]
    if (!kv) return this.#attend(layer, q, n, this.#layers[source].seen).out
    return isPrompt
      ? this.#attendPrompt(layer, { q, ...kv }, n)
      : this.#attendTail(layer, { q, ...kv }, n)
  }

  #recur(layer: number, name: string, normed: Float64Array): Float64Array {
    return this.#model.config.recurrence!.rule === 'gated delta'
      ? this.#gatedDelta(layer, `${name}.linear_attn`, normed)
      : this.#selectiveScan(layer, `${name}.mamba`, normed)
  }

  /** Gated DeltaNet (arXiv 2412.06464). */
  #gatedDelta(layer: number, name: string, normed: Float64Array): Float64Array {
    const { hiddenSize, recurrence } = this.#model.config
    const { nKeyHeads, nValueHeads: nHeads, keyDim, valueDim, normEps: eps } = recurrence!
    const projected = (what: string) =>
      this.#model.project(`${name}.in_proj_${what}`, normed, hiddenSize)
    const own = (what: string) => this.#model.weight(`${name}.${what}`)!
    const channels = 2 * nKeyHeads * keyDim + nHeads * valueDim
    const read = gatedDelta({
      qkv: this.#convolve(layer, name, projected('qkv'), channels),
      ...{ decay: projected('a'), beta: projected('b') },
      ...{ decayLog: own('A_log'), decayBias: own('dt_bias'), state: this.#states[layer].state },
      ...{ nKeyHeads, nHeads, keyDim, valueDim },
    })
    this.#states[layer].state = read.state
    const up = rmsNorm({ x: read.out, weight: own('norm.weight'), width: valueDim, eps })
    const gated = siluGate({ gate: projected('z'), up })
    return this.#model.project(`${name}.out_proj`, gated, nHeads * valueDim)
  }

  /** Mamba 2 (arXiv 2405.21060). */
  #selectiveScan(layer: number, name: string, normed: Float64Array): Float64Array {
    const { hiddenSize, recurrence } = this.#model.config
    const { nKeyHeads: nGroups, nValueHeads: nHeads, keyDim, valueDim, normEps: eps } = recurrence!
    const own = (what: string) => this.#model.weight(`${name}.${what}`)!
    const inner = nHeads * valueDim
    const channels = inner + 2 * nGroups * keyDim
    const all = this.#model.project(`${name}.in_proj`, normed, hiddenSize)
    const part = (begin: number, width: number) =>
      all.filter((_, i) => {
        const column = i % (inner + channels + nHeads)
        return column >= begin && column < begin + width
      })
    const read = selectiveScan({
      xbc: this.#convolve(layer, name, part(inner, channels), channels),
      ...{ step: part(inner + channels, nHeads), stepBias: own('dt_bias') },
      ...{ decayLog: own('A_log'), skip: own('D'), state: this.#states[layer].state },
      ...{ nGroups, nHeads, stateDim: keyDim, headDim: valueDim },
    })
    this.#states[layer].state = read.state
    const x = siluGate({ gate: part(0, inner), up: read.out })
    const normedRead = rmsNorm({ x, weight: own('norm.weight'), width: inner, eps })
    return this.#model.project(`${name}.out_proj`, normedRead, inner)
  }

  #convolve(layer: number, name: string, x: Float64Array, channels: number): Float64Array {
    const { convWidth: width } = this.#model.config.recurrence!
    const weight = this.#model.weight(`${name}.conv1d.weight`)!
    const bias = this.#model.weight(`${name}.conv1d.bias`)
    const { before } = this.#states[layer]
    const { out, last } = causalConv({ x, weight, bias, channels, width, before })
    this.#states[layer].before = last
    return out
  }

  #heads(layer: number, name: string, normed: Float64Array): Heads {
    const { config } = this.#model
    const { hiddenSize, nHeads } = config
    const { headDim, nKvHeads, rotaryDim, valuesAreKeys } = headsOf(config, layer)
    const n = normed.length / hiddenSize
    const positions = Array.from({ length: n }, (_, i) => this.length + i)
    const frequencies = ropeFrequencies(config.ropes[layer]!, rotaryDim, config.maxPositions)
    const rotated = (which: 'q' | 'k', count: number) => {
      const growth = which === 'q' ? (config.queryGrowth ?? {}) : {}
      const table = ropeTable({ positions, ...frequencies, ...growth })
      const all = this.#model.project(`${name}.self_attn.${which}_proj`, normed, hiddenSize)
      const raw = which === 'q' ? this.#ownHalf(all, 0) : all
      const width = config.qkNorm === 'all heads' ? count * headDim : headDim
      const norm = (x: Float64Array) =>
        this.#model.norm(`${name}.self_attn.${config.qkNormNames[which]}`, x, width)
      const turn = (x: Float64Array) =>
        rope({ x: this.#inHalves(x), ...table, nHeads: count, headDim })
      return config.qkNorm === 'each head, rotated' ? norm(turn(raw)) : turn(norm(raw))
    }
    const gate = config.gatesAttention
      ? this.#ownHalf(this.#model.project(`${name}.self_attn.q_proj`, normed, hiddenSize), 1)
      : null
    const q = rotated('q', nHeads)
    if (config.kvSources[layer] !== layer) return { q, gate, kv: null }
    const values = `${name}.self_attn.${valuesAreKeys ? 'k' : 'v'}_proj`
    const raw = this.#model.project(values, normed, hiddenSize)
    const v = config.normalizesValues ? this.#model.plainNorm(raw, headDim) : raw
    return { q, gate, kv: { k: rotated('k', nKvHeads), v } }
  }

  /** Of gated attention's q_proj: each head's query (0), or its gate. */
  #ownHalf(x: Float64Array, half: 0 | 1): Float64Array {
    const { gatesAttention, headDim } = this.#model.config
    return gatesAttention ? x.filter((_, i) => Math.floor(i / headDim) % 2 === half) : x
  }

  /** Channels of heads, the first of each pair that rotates before the second ones. */
  #inHalves(x: Float64Array): Float64Array {
    const { interleavedRope, headDim, rotaryDim } = this.#model.config
    if (!interleavedRope) return x
    const half = rotaryDim / 2
    return x.map((_, i) => {
      const channel = i % headDim
      if (channel >= rotaryDim) return x[i]
      return x[i - channel + (channel < half ? 2 * channel : 2 * (channel - half) + 1)]
    })
  }

  /** A row sees itself and what came before, packed or not. */
  #attend(layer: number, q: Float64Array, n: number, segments: Segment[]) {
    const { nHeads, slidingWindow, softmaxScale } = this.#model.config
    const { nKvHeads, headDim } = headsOf(this.#model.config, layer)
    this.#layers[layer].seen = segments
    const attended = mixedAttention({
      q,
      segments,
      nHeads,
      nKvHeads,
      headDim,
      scale: softmaxScale,
      queryPositions: Array.from({ length: n }, (_, i) => this.length + i),
      slidingWindow: slidingWindow[layer],
    })
    const sinks = this.#model.weight(`model.layers.${layer}.self_attn.sinks`)
    return sinks ? attentionSinks({ ...attended, sinks, headDim }) : attended
  }

  /** Alg. 2: exact attention among the prompt and the tail before it, then both are compressed. */
  #attendPrompt(
    layer: number,
    { q, k, v }: KeysAndValues & { q: Float64Array },
    n: number,
  ): Float64Array {
    const cache = this.#layers[layer]
    const allK = Float64Array.from([...cache.tailK, ...k])
    const allV = Float64Array.from([...cache.tailV, ...v])
    const segments = [...cache.packed, this.#plain(layer, allK, allV)]
    const { out, lse } = this.#attend(layer, q, n, segments)
    const seed = deriveSeed(this.#seed, this.#nGroups)
    const rows = this.#compression!.promptProbes(
      n,
      seed,
      layerPlaces(this.#model.config)[layer].index,
    )
    const positions = rows.map((row) => this.#tailLength + row)
    this.#compress(layer, allK, allV, { q, lse, rows, positions })
    return out
  }

  /** Alg. 3: the tokens join the tail; the last of a window has it compressed. */
  #attendTail(
    layer: number,
    { q, k, v }: KeysAndValues & { q: Float64Array },
    n: number,
  ): Float64Array {
    const { config } = this.#model
    const cache = this.#layers[layer]
    const isFirst = this.length === 0
    cache.tailK.push(...this.#stored(k))
    cache.tailV.push(...this.#stored(v))
    const [tailK, tailV] = [Float64Array.from(cache.tailK), Float64Array.from(cache.tailV)]
    // A first prompt attends to its rows before they are rounded.
    const newest = isFirst ? this.#plain(layer, k, v) : this.#plain(layer, tailK, tailV)
    const { out, lse } = this.#attend(layer, q, n, [...cache.packed, newest])
    const compression = this.#compression
    if (!compression) return out

    const steps = compression.windowProbes(deriveSeed(this.#seed, this.#nGroups))
    for (let row = 0; row < n; row++) {
      if (!steps.includes(this.#tailLength + row)) continue
      const width = config.nHeads * headsOf(config, layer).headDim
      cache.probeQ.push(...q.subarray(row * width, (row + 1) * width))
      cache.probeLse.push(...lse.subarray(row * config.nHeads, (row + 1) * config.nHeads))
    }
    if (n === 1 && this.#tailLength + 1 === compression.window) {
      const rows = steps.map((_, i) => i)
      const { probeQ, probeLse } = cache
      this.#compress(layer, tailK, tailV, { q: probeQ, lse: probeLse, rows, positions: steps })
    }
    return out
  }

  #compress(
    layer: number,
    k: Float64Array,
    v: Float64Array,
    probes: {
      q: ArrayLike<number>
      lse: ArrayLike<number>
      rows: Int32Array
      positions: Int32Array
    },
  ): void {
    const { nHeads, slidingWindow, softmaxScale } = this.#model.config
    const { nKvHeads, headDim } = headsOf(this.#model.config, layer)
    const compression = this.#compression!
    const n = k.length / (nKvHeads * headDim)
    const count = compression.nSalient(n)
    const shape = { nHeads, nKvHeads, headDim, kvLen: n }
    const scores = probeAttention({
      ...probes,
      k,
      ...shape,
      scale: softmaxScale,
      slidingWindow: slidingWindow[layer],
      normalization: plainMetric(compression.metric),
    })
    const { salient, regular } = selectSalient({ scores, nHeads: nKvHeads, n, count })
    for (const [rows, precision] of [
      [salient, compression.high],
      [regular, compression.low],
    ] as const) {
      if (rows.length === 0) continue
      const segment = packSegment({ k, v, rows, nKvHeads, headDim, ...formatsOf(precision) })
      const positions = rows.map((row) => this.#tailStart + row)
      this.#layers[layer].packed.push({ ...segment, positions })
    }
  }

  #endGroup(): void {
    this.#tailStart += this.#tailLength
    this.#tailLength = 0
    this.#nGroups++
    for (const cache of this.#layers) {
      Object.assign(cache, { tailK: [], tailV: [], probeQ: [], probeLse: [] })
    }
  }

  /** Rows (n, n_kv_heads, head_dim) from the tail's start on, as a segment. */
  #plain(layer: number, k: Float64Array, v: Float64Array): Segment {
    const { nKvHeads, headDim } = headsOf(this.#model.config, layer)
    const n = k.length / (nKvHeads * headDim)
    const byHead = (x: Float64Array) =>
      Float64Array.from({ length: x.length }, (_, i) => {
        const [row, channel] = [Math.floor(i / headDim), i % headDim]
        return x[((row % n) * nKvHeads + Math.floor(row / n)) * headDim + channel]
      })
    const positions = Array.from({ length: nKvHeads * n }, (_, i) => this.#tailStart + (i % n))
    return { nTokens: n, positions, k: byHead(k), v: byHead(v) }
  }

  #stored(x: Float64Array): Float64Array {
    return this.#isHalf ? fromF16(Uint16Array.from(x, f32ToF16)) : x
  }
}

function formatsOf({ keyBits, valueBits, keyRange, valueRange }: PrecisionClass) {
  const format = (bits: number) => `u${bits}` as SegmentFormat
  return { keyFormat: format(keyBits), valueFormat: format(valueBits), keyRange, valueRange }
}

/** The metrics of the paper's equations; the twin knows no other. */
function plainMetric(metric: SaliencyMetric): 'normalized' | 'accumulated' {
  if (metric === 'normalized' || metric === 'accumulated') return metric
  throw new Error(`the double-precision twin has no metric ${metric}`)
}

/** W x of one row. */
function product(x: Float64Array, weight: Float64Array, bias?: Float64Array): Float64Array {
  return linear({ x, weight, bias, m: 1, n: weight.length / x.length, k: x.length })
}

/** A matrix (height, n) as (n, height). */
function transposed(x: Float64Array, height: number): Float64Array {
  const n = x.length / height
  return x.map((_, i) => x[(i % height) * n + Math.floor(i / height)])
}

/** Of rows of `width` those with even numbers, and the others. */
function everyOther(x: Float64Array, width: number): [Float64Array, Float64Array] {
  const rows = (odd: number) => x.filter((_, i) => Math.floor(i / width) % 2 === odd)
  return [rows(0), rows(1)]
}

function add(a: Float64Array, b: Float64Array): Float64Array {
  return a.map((x, i) => x + b[i])
}
