import type { SubjectModel, SubjectSequence, SubjectTokenizer } from './subject.js'

/** What a question has to work with. */
export interface Asked {
  /** Empty, kept by the policy that is asked. */
  readonly sequence: SubjectSequence
  /** Whose sequence it is. */
  readonly model: SubjectModel
  /** The model's. */
  readonly tokenizer: SubjectTokenizer
  /** Aborts the question. */
  readonly signal: AbortSignal | undefined
  /** What is the same for all policies of a question: computed by the first. */
  once<T>(compute: () => Promise<T>): Promise<T>
}

/** How one policy did at one question. */
export interface Outcome {
  /**
   * 1 or 0 where answers are right or wrong; of [0, 1] where they are more or less right; mean
   * negative log-likelihood of a token, in nats, where text is predicted.
   */
  readonly score: number
  /** What the model wrote, where it wrote. */
  readonly answer: string | null
  /** What is right, where one thing is. */
  readonly expected: string | null
  /** What else was measured, by name. */
  readonly values?: Readonly<Record<string, number>>
}

/** One question, the same for every policy. */
export interface Question {
  /** Of the sequence's probes. */
  readonly seed: number
  /** Asks it; rejects as the sequence does. */
  ask(asked: Asked): Promise<Outcome>
}

/** `hits` are right or wrong, a `score` is of [0, 1], a `loss` is in nats per token. */
export type Measure = 'hits' | 'score' | 'loss'

/** What one can say of a task without asking. */
export interface TaskFacts {
  /** As on the command line: `line-retrieval`. */
  readonly name: string
  /** What tells it from other tasks of the same name: `{ lines: 200, ask: 'inside' }`. */
  readonly facts: Readonly<Record<string, string | number>>
  /** Equal keys ask equal questions: name, facts, settings and digests of files. */
  readonly key: string
  /** What the scores are. */
  readonly measure: Measure
  /** Questions, 1 or more. */
  readonly count: number
}

/** A task: questions that can be asked one by one, in any order. */
export interface Task extends TaskFacts {
  /** - `index` of [0, count) */
  question(index: number): Question
}

/** What tasks are made of beside their own settings. */
export interface TaskSetting {
  /** Who will be asked. */
  readonly model: SubjectModel
  /** The model's. */
  readonly tokenizer: SubjectTokenizer
  /** How many questions are wanted; a file may have fewer. */
  readonly questions: number
  /** Any integer; the same seed gives the same questions and probes. */
  readonly seed: number
}
