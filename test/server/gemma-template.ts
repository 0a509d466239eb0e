/** A chat template that writes what those of Gemma 4's models do, in fewer words; and their special tokens. */

export const kGemmaMarks = [
  '<|turn>',
  '<turn|>',
  '<|channel>',
  '<channel|>',
  '<|tool>',
  '<tool|>',
  '<|tool_call>',
  '<tool_call|>',
  '<|tool_response>',
  '<tool_response|>',
  '<|"|>',
  '<|think|>',
]

/** Values, and what a tool's parameters are. */
const values = `
{%- macro value(it) -%}
  {%- if it is none -%}null
  {%- elif it is string -%}<|"|>{{ it }}<|"|>
  {%- elif it is boolean -%}{{ 'true' if it else 'false' }}
  {%- elif it is mapping -%}{ {{- pairs(it) -}} }
  {%- elif it is sequence -%}[{% for one in it %}{{ value(one) }}{{ ',' if not loop.last }}{% endfor %}]
  {%- else -%}{{ it }}
  {%- endif -%}
{%- endmacro -%}
{%- macro pairs(it) -%}
  {%- for key, own in it | dictsort -%}{{ key }}:{{ value(own) }}{{ ',' if not loop.last }}{%- endfor -%}
{%- endmacro -%}
{%- macro kinds(properties) -%}
  {%- for key, own in properties | dictsort -%}
    {{ key }}:{type:<|"|>{{ own['type'] | upper }}<|"|>}{{ ',' if not loop.last }}
  {%- endfor -%}
{%- endmacro -%}`

/** The first turn: whether the model thinks, what the system says, and the tools. */
const system = `
{%- set told = messages[0]['role'] in ['system', 'developer'] -%}
{%- if enable_thinking or tools or told -%}
  <|turn>system{{ '\\n' }}
  {%- if enable_thinking -%}<|think|>{{ '\\n' }}{%- endif -%}
  {%- if told -%}{{ messages[0]['content'] | trim }}{%- endif -%}
  {%- for tool in tools or [] -%}
    {%- set own = tool['function'] -%}
    <|tool>declaration:{{ own['name'] }}{description:<|"|>{{ own['description'] }}<|"|>
    {%- if own['parameters'] -%},parameters:{properties:{ {{- kinds(own['parameters']['properties'] or {}) -}} }}{%- endif -%}
    }<tool|>
  {%- endfor -%}
  <turn|>{{ '\\n' }}
{%- endif -%}`

const call = `
{%- for one in message['tool_calls'] -%}
  <|tool_call>call:{{ one['function']['name'] }}{ {{- pairs(one['function']['arguments']) -}} }<tool_call|>
{%- endfor -%}`

const end = `
{%- if add_generation_prompt and not state.hasResults -%}<|turn>model{{ '\\n' }}
{%- elif add_generation_prompt and enable_thinking -%}<|channel>thought{{ '\\n' }}
{%- endif -%}`

/** The one of today, which finds a call's results behind it. */
export const kGemmaTemplate = `${values}${system}
{%- set state = namespace(hasResults=false, calls=[]) -%}
{%- for message in messages[1:] if told else messages -%}
  {%- if message['role'] == 'tool' -%}
    <|tool_response>response:
    {%- for one in state.calls if one['id'] == message['tool_call_id'] -%}{{ one['function']['name'] }}{%- endfor -%}
    {value:{{ value(message['content']) }}}<tool_response|>
    {%- set state.hasResults = true -%}
  {%- else -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {%- if not (role == 'model' and state.hasResults) -%}<|turn>{{ role }}{{ '\\n' }}{%- endif -%}
    {%- set state.hasResults = false -%}
    {%- if message['tool_calls'] -%}
      {%- if message['reasoning_content'] -%}<|channel>thought{{ '\\n' + message['reasoning_content'] + '\\n' }}<channel|>{%- endif -%}
      ${call}
      {%- set state.calls = message['tool_calls'] -%}
    {%- endif -%}
    {{- (message['content'] or '') | trim -}}
    {%- if not message['tool_calls'] -%}<turn|>{{ '\\n' }}{%- endif -%}
  {%- endif -%}
{%- endfor -%}${end}`

/** The one of the first months, whose calls have their results with them. */
export const kFirstGemmaTemplate = `${values}${system}
{%- set state = namespace(hasResults=false) -%}
{%- for message in messages[1:] if told else messages -%}
  <|turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}{{ '\\n' }}
  {%- if message['tool_calls'] -%}${call}{%- endif -%}
  {%- set state.hasResults = message['tool_responses'] is defined -%}
  {%- for one in message['tool_responses'] or [] -%}
    <|tool_response>response:{{ one['name'] }}{
    {%- if one['response'] is mapping -%}{{ pairs(one['response']) }}{%- else -%}value:{{ value(one['response']) }}{%- endif -%}
    }<tool_response|>
  {%- endfor -%}
  {{- (message['content'] or '') | trim -}}
  {%- if not (state.hasResults and not message['content']) -%}<turn|>{{ '\\n' }}{%- set state.hasResults = false -%}{%- endif -%}
{%- endfor -%}${end}`
