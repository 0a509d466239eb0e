// The text that the examples ask about, in the words that models/line-retrieval knows: 64 lines, each
// with a number of its own.
const adjectives = ['brisk', 'calm', 'eager', 'jolly', 'noble', 'quick', 'shiny', 'warm']
const nouns = ['apple', 'cabin', 'dragon', 'garden', 'island', 'lemon', 'mirror', 'wagon']

export const records = adjectives.flatMap((adjective, a) =>
  nouns.map((noun, n) => ({
    key: `line ${adjective} - ${noun}`,
    number: String((12_345 + 7_919 * (8 * a + n) ** 2) % 100_000).padStart(5, '0'),
  })),
)

const lines = records.map(
  ({ key, number }) => `${key} : REGISTER_CONTENT is < ${[...number].join(' ')} > \n`,
)

export const recordText = [
  '<s> below is a record of lines , please remember the number in it . \n',
  ...lines,
].join(' ')

export const questionText = (key) =>
  ` question : tell me what is the REGISTER_CONTENT in ${key} ? I need the number . \n answer :`
