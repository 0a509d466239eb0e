/** Calls whose arguments stand between tags: what the models' own templates write is read back. */
import { Template } from '@huggingface/jinja'
import fc from 'fast-check'
import { makeToolCallParser, type ToolFormat, toolFormatOf } from '../../lib/chat/tool-calls'
import { inTemplateWords, toolsInTemplateWords } from '../../lib/server/template-messages'
import { propertyRuns } from '../support/properties'

/** How chat templates of these models write an answer's calls, as published; what they say of tools is left out. */
const templates: Record<string, string> = {
  'qwen-coder': `{%- for tool_call in tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n<function=' + tool_call.name + '>\\n' }}
            {%- if tool_call.arguments is defined %}
                {%- for args_name, args_value in tool_call.arguments|items %}
                    {{- '<parameter=' + args_name + '>\\n' }}
                    {%- set args_value = args_value | tojson | safe if args_value is mapping or (args_value is sequence and args_value is not string) else args_value | string %}
                    {{- args_value }}
                    {{- '\\n</parameter>\\n' }}
                {%- endfor %}
            {%- endif %}
            {{- '</function>\\n</tool_call>' }}
        {%- endfor %}`,
  glm: `{% for tc in tool_calls %}
{%- if tc.function %}
    {%- set tc = tc.function %}
{%- endif %}
{{ '\\n<tool_call>' + tc.name }}
{% set _args = tc.arguments or {} %}
{% for k, v in _args.items() %}
<arg_key>{{ k }}</arg_key>
<arg_value>{{ v | tojson(ensure_ascii=False) if v is not string else v }}</arg_value>
{% endfor %}
</tool_call>{% endfor %}`,
  minimax: `{%- set toolcall_begin_token = '<minimax:tool_call>' -%}
{%- set toolcall_end_token = '</minimax:tool_call>' -%}
            {{- '\\n' ~ toolcall_begin_token ~ '\\n' }}
            {%- for tool_call in tool_calls -%}
                {%- if tool_call.function %}
                    {%- set tool_call = tool_call.function %}
                {%- endif %}
                {{- '<invoke name="' + tool_call.name + '">' }}
                {% set _args = tool_call.arguments %}
                {%- for k, v in _args.items() %}
                {{- '<parameter name="' + k + '">' }}
                {{- v | tojson(ensure_ascii=False) if v is not string else v }}
                {{- '</parameter>' }}
                {% endfor %}
                {{- '</invoke>' ~ '\\n' }}
            {%- endfor -%}
            {{- toolcall_end_token}}`,
  seed: `{%- for tool_call in tool_calls %}
{%- if tool_call.function is defined %}{% set tool_call = tool_call.function %}{% endif %}
{{ "\\n<seed:tool_call>\\n<function=" + tool_call.name + ">\\n" }}
{%- for arg_name, arg_value in tool_call.arguments | items %}
{{ "<parameter=" + arg_name + ">" }}
{%- set arg_value = arg_value if arg_value is string else arg_value | string %}
{{ arg_value+"</parameter>\\n" }}
{%- endfor %}
{{ "</function>\\n</seed:tool_call>" }}
{%- endfor %}`,
}
const formats = Object.keys(templates) as ToolFormat[]

const parameters = {
  type: 'object',
  properties: {
    text: { type: 'string' },
    count: { type: 'integer' },
    share: { anyOf: [{ type: 'number' }, { type: 'null' }] },
    isOn: { type: ['boolean', 'null'] },
    list: { $ref: '#/$defs/list' },
    nested: { type: 'object', nullable: true },
    kind: { enum: ['1', 'true', 'b'] },
    unknown: {},
  },
  $defs: { list: { oneOf: [{ type: 'array' }, { $ref: '#/$defs/list' }] } },
}

/** What a parser makes of an answer that comes in pieces; marks are tokens of their own where `areSpecial`. */
function read(format: ToolFormat, pieces: readonly string[], areSpecial = false) {
  const marks = /^<\/?(minimax:|seed:)?tool_call>$/
  const ids = new Map<string, number>()
  const parser = makeToolCallParser(format, {
    names: new Set(['edit', 'time']),
    parametersOf: (name) => (name === 'edit' ? parameters : undefined),
    specialId(mark) {
      if (!areSpecial) return undefined
      ids.set(mark, 1000 + ids.size)
      return ids.get(mark)
    },
  })
  const said = pieces.map((piece) =>
    areSpecial && marks.test(piece)
      ? parser.push(ids.get(piece) ?? null, '')
      : parser.push(1, piece),
  )
  said.push(parser.end())
  return {
    text: said.map(({ text }) => text).join(''),
    calls: said.flatMap(({ calls }) => calls).map((call) => [call.name, call.arguments]),
  }
}

const inPieces = (text: string) => text.split(/(<\/?(?:minimax:|seed:)?tool_call>)/)
function written(format: string, ...calls: [name: string, args: object][]): string {
  const template = templates[format] as string
  const tool_calls = calls.map(([name, args]) => ({ function: { name, arguments: args } }))
  const [message] = inTemplateWords(template, [{ role: 'assistant', content: '', tool_calls }], [])
  return new Template(template).render({ ...message })
}

describe.each(formats)('as %s', (format) => {
  test('the chat template says so', () => {
    expect(toolFormatOf(templates[format] as string)).toBe(format)
  })

  test('what the template writes is read back, however it is cut into tokens', () => {
    const text = fc
      .array(fc.constantFrom('<', '</', '>', 'a b', '\n', '"', '{', ' é', '</parameter', '1'))
      .map((bits) => `x${bits.join('')}y`)
    const json = fc.jsonValue({ maxDepth: 2 }).map((value) => [value])
    const args = fc.record(
      {
        text: fc.oneof(text, fc.constantFrom('1', 'true', 'None', '[]', '', 'a\n\nb')),
        count: fc.integer(),
        kind: fc.constantFrom('1', 'true', 'b'),
        share: fc.constantFrom(null, 0.5, -3),
        isOn: fc.constantFrom(true, false, null),
        list: json,
        nested: fc.option(fc.record({ a: json, 'b </p>': fc.constant('"}') })),
        unknown: fc.oneof(json, fc.constant(7), fc.constant('word')),
      },
      { requiredKeys: [] },
    )
    fc.assert(
      fc.property(args, fc.boolean(), (given, isCut) => {
        const said = `I do.${written(format, ['edit', given], ['time', {}])}`
        const { text, calls } = read(format, isCut ? [...said] : inPieces(said), !isCut)
        expect(text).toBe('I do.')
        const values = calls.map(([name, args]) => [name, JSON.parse(args as string)])
        expect(values).toEqual([
          ['edit', JSON.parse(JSON.stringify(given))],
          ['time', {}],
        ])
      }),
      propertyRuns(200),
    )
  })

  test('what is none stays text', () => {
    const whole = written(format, ['edit', { text: 'a', count: 2 }])
    for (const said of [
      whole.slice(0, -30),
      whole.replace('edit', 'edit <b>').replace(/<\/(parameter|arg_value)>/, ''),
      whole.replace(/(<\/(minimax:|seed:)?tool_call>)/, 'and more$1'),
    ]) {
      expect(read(format, [...said])).toEqual({ text: said, calls: [] })
    }
  })

  test('JSON is taken, too; numbers stay as they are written', () => {
    const [, open, close] = /(<[\w:]*tool_call>).*(<\/[\w:]*tool_call>)/s.exec(
      written(format, ['time', {}]),
    ) as RegExpExecArray
    const said = `${open}\n{"name": "edit", "arguments": {"count": 12345678901234567890}}\n${close}`
    const args = '{"count": 12345678901234567890}'
    expect(read(format, [said]).calls).toEqual([['edit', args]])
    const tagged = written(format, ['edit', { count: 1 }]).replace(/1(?=\s*<)/, args.slice(10, -1))
    expect(read(format, [tagged]).calls).toEqual([['edit', args]])
  })

  test('what never becomes a call takes no longer the more of it there is', () => {
    const whole = written(format, ['edit', { text: 'a' }])
    const tags = whole.match(/<[^>]*>/g) as string[]
    const [mark] = tags
    for (const pair of tags.flatMap((tag) => tags.map((other) => `${tag}${other}`))) {
      const said = `${mark} edit ${pair.repeat(2 ** 11)}`
      const start = performance.now()
      read(format, said.match(/.{1,1000}/gs) as string[])
      // By an expression that tries all it can, it was minutes.
      expect(performance.now() - start).toBeLessThan(2000)
    }
  })

  test('a value of megabytes is read', () => {
    const text = '</parameter \n<'.repeat(2 ** 17)
    const said = written(format, ['edit', { text: `a${text}b` }])
    const [call] = read(format, [said]).calls
    expect(JSON.parse(call?.[1] as string)).toEqual({ text: `a${text}b` })
  })
})

test('a call without its first mark, or its last', () => {
  const body = '<function=edit>\n<parameter=text>\na\n</parameter>\n</function>\n'
  const calls = [['edit', '{"text": "a"}']]
  expect(read('qwen-coder', [...`So.\n${body}</tool_call>`])).toEqual({ text: 'So.', calls })
  expect(read('qwen-coder', [...`<tool_call>\n${body}`])).toEqual({ text: '', calls })
  expect(read('qwen-coder', [...body])).toEqual({ text: '', calls })
  expect(read('qwen-coder', [...'so <function=ed'])).toEqual({ text: 'so <function=ed', calls: [] })
})

test('what is said of a function that is none is not held back', () => {
  const parser = makeToolCallParser('qwen-coder', {
    names: new Set(['edit']),
    parametersOf: () => undefined,
    specialId: () => undefined,
  })
  expect(parser.push(1, 'Write <function=f>, then <function=e').text).toBe(
    'Write <function=f>, then',
  )
  expect(parser.push(1, 'x> so').text).toBe(' <function=ex> so')
})

test.each([
  '<tool_call>ed',
  '<tool_call>time',
  '<tool_call>edit\n<arg_key>text</arg_key>\n<arg_value>a</arg_value>\n',
  'The <tool_call>word</tool_call> mark',
])('no call of GLM’s is made of %j', (said) => {
  expect(read('glm', [said])).toEqual({ text: said, calls: [] })
  expect(read('glm', [...said])).toEqual({ text: said, calls: [] })
})

test('a type that one of several schemas says', () => {
  const allOf = [{ minLength: 1 }, { type: 'string' }]
  const parser = makeToolCallParser('glm', {
    names: new Set(['f']),
    parametersOf: () => ({ properties: { a: { allOf } } }),
    specialId: () => undefined,
  })
  const said = '<tool_call>f<arg_key>a</arg_key><arg_value>7</arg_value></tool_call>'
  expect(parser.push(1, said).calls[0]?.arguments).toBe('{"a": "7"}')
})

test('words of Python, where there may be such a value', () => {
  const said =
    '<tool_call>edit<arg_key>isOn</arg_key><arg_value>True</arg_value><arg_key>share</arg_key><arg_value> None </arg_value><arg_key>text</arg_key><arg_value>None</arg_value><arg_key>count</arg_key><arg_value>many</arg_value></tool_call>'
  const args = '{"isOn": true, "share": null, "text": "None", "count": "many"}'
  expect(read('glm', [said]).calls).toEqual([['edit', args]])
})

test('what Qwen3-Coder’s template says of tools, defaults that are nothing among it', () => {
  const template = `{% macro render_extra_keys(json_dict, handled_keys) %}
    {%- if json_dict is mapping %}
        {%- for json_key in json_dict if json_key not in handled_keys %}
            {%- if json_dict[json_key] is mapping or (json_dict[json_key] is sequence and json_dict[json_key] is not string) %}
                {{- '\\n<' ~ json_key ~ '>' ~ (json_dict[json_key] | tojson | safe) ~ '</' ~ json_key ~ '>' }}
            {%- else %}
                {{-'\\n<' ~ json_key ~ '>' ~ (json_dict[json_key] | string) ~ '</' ~ json_key ~ '>' }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
{% endmacro %}
{%- for tool in tools %}
    {%- for param_name, param_fields in tool.function.parameters.properties|items %}
        {{- '\\n' ~ param_name ~ render_extra_keys(param_fields, ['type']) }}
    {%- endfor %}
    {{- render_extra_keys(tool.function.parameters, ['type', 'properties']) }}
{%- endfor %}{# <tool_call><function= #}`
  const properties = {
    a: { anyOf: [{ type: 'string' }, { type: 'null' }], default: null },
    b: { type: 'boolean', default: true },
  }
  const own = { name: 'f', parameters: { type: 'object', properties, additionalProperties: false } }
  const tools = toolsInTemplateWords(template, [{ type: 'function', function: own }])
  expect(new Template(template).render({ tools }).trim().split('\n')).toEqual([
    'a',
    '<anyOf>[{"type": "string"}, {"type": "null"}]</anyOf>',
    '<default>None</default>',
    'b',
    '<default>True</default>',
    '<additionalProperties>False</additionalProperties>',
  ])
})
