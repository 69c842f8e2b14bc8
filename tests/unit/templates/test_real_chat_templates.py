"""Chat templates as models bring them are rendered to the letter as transformers renders them."""

from __future__ import annotations

import pytest
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers.utils import chat_template_utils

from furiosa_llm.templates.environment import BoundedEnvironment

Row = list[dict[str, object]]

REASONING = r"""
{%- macro content_of(content, is_system=false) -%}
    {%- if content is string -%}{{- content -}}
    {%- elif content is iterable and content is not mapping -%}
        {%- for item in content -%}
            {%- if item.type == 'image' or 'image' in item -%}
                {%- if is_system -%}{{- raise_exception('No images here') -}}{%- endif -%}
                {{- '<|image|>' -}}
            {%- elif 'text' in item -%}{{- item.text -}}
            {%- else -%}{{- raise_exception('Unexpected item') -}}{%- endif -%}
        {%- endfor -%}
    {%- elif content is none or content is undefined -%}{{- '' -}}
    {%- else -%}{{- raise_exception('Unexpected content') -}}{%- endif -%}
{%- endmacro -%}
{%- if tools and tools is iterable and tools is not mapping -%}
    {{- '<|im_start|>system\n# Tools\n<tools>' -}}
    {%- for tool in tools -%}{{- "\n" -}}{{- tool | tojson -}}{%- endfor -%}
    {{- "\n</tools><|im_end|>\n" -}}
{%- elif messages[0].role == 'system' -%}
    {{- '<|im_start|>system\n' + content_of(messages[0].content, true) + '<|im_end|>\n' -}}
{%- endif -%}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) -%}
{%- for message in messages[::-1] -%}
    {%- set index = (messages|length - 1) - loop.index0 -%}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string
        and not(message.content.startswith('<tool_response>')
        and message.content.endswith('</tool_response>')) -%}
        {%- set ns.multi_step_tool = false -%}
        {%- set ns.last_query_index = index -%}
    {%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
    {%- set content = content_of(message.content)|trim -%}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) -%}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' -}}
    {%- elif message.role == "assistant" -%}
        {%- set reasoning_content = '' -%}
        {%- if message.reasoning_content is string -%}
            {%- set reasoning_content = message.reasoning_content -%}
        {%- elif '</think>' in content -%}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\n')
                .split('<think>')[-1].lstrip('\n') -%}
            {%- set content = content.split('</think>')[-1].lstrip('\n') -%}
        {%- endif -%}
        {%- if loop.index0 > ns.last_query_index or loop.last -%}
            {{- '<|im_start|>assistant\n<think>\n' + reasoning_content.strip('\n')
                + '\n</think>\n\n' + content.lstrip('\n') -}}
        {%- else -%}
            {{- '<|im_start|>' ~ message.role ~ '\n' ~ content -}}
        {%- endif -%}
        {%- for tool_call in message.tool_calls or [] -%}
            {%- if tool_call.function -%}{%- set tool_call = tool_call.function -%}{%- endif -%}
            {{- '\n<tool_call>\n{"name": "' -}}{{- tool_call.name -}}{{- '", "arguments": ' -}}
            {%- if tool_call.arguments is string -%}{{- tool_call.arguments -}}
            {%- else -%}{{- tool_call.arguments | tojson -}}{%- endif -%}
            {{- '}\n</tool_call>' -}}
        {%- endfor -%}
        {{- '<|im_end|>\n' -}}
    {%- elif message.role == "tool" -%}
        {%- if loop.first or (loop.previtem and loop.previtem.role != "tool") -%}
            {{- '<|im_start|>user' -}}
        {%- endif -%}
        {{- '\n<tool_response>\n' -}}{{- content -}}{{- '\n</tool_response>' -}}
        {%- if loop.last or loop.nextitem.role != "tool" -%}{{- '<|im_end|>\n' -}}{%- endif -%}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\n' -}}
    {%- if enable_thinking is defined and enable_thinking is false -%}
        {{- '<think>\n\n</think>\n\n' -}}
    {%- endif -%}
{%- endif -%}
"""
TOOLS = r"""{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{%- set date_string = strftime_now("%Y") %}
    {%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}{%- set system_message = "" %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\nToday: " + date_string + "\n" + system_message }}
{%- if tools is not none and tools %}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\n\n" }}{%- endfor %}
    {%- for name, spec in tools[0].function.parameters.properties.items() %}
        {{- "%s: %-8s|" % (name, spec['type']) + "{:>10}".format(spec.get('description', 'none')) }}
        {{- '{0} {kind!r} {1:03d}'.format(name|upper, loop.index, kind=spec.type) + '\n' }}
        {{- spec.type.title() ~ ' ' ~ (spec.enum|default(['any'], true))|join(', ') }}
    {%- endfor %}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
        {%- if message['content'] is mapping %}{{- message['content']|dictsort|tojson }}
        {%- elif message['content'] is string %}{{- message['content'] | trim + '<|eot_id|>' }}
        {%- else %}
            {{- message['content']|selectattr('type', 'equalto', 'text')
                |map(attribute='text')|list|join('\n') }}
        {%- endif %}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {%- for arg_name, arg_val in tool_call.arguments | items %}
            {{- arg_name + '="' + (arg_val if arg_val is string else arg_val|tojson) + '"' }}
            {%- if not loop.last %}{{- ", " }}{%- endif %}
        {%- endfor %}
        {{- tool_call.arguments|tojson(ensure_ascii=False, separators=(',', ':'), sort_keys=true) }}
    {%- else %}{{- message.content | tojson }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""
ALTERNATING = r"""{{ bos_token }}
{% set ns = namespace(system='', turns=[], n=0) %}
{% for message in messages %}
{% if message.role == 'system' %}
{% set ns.system = ns.system + message.content + '\n\n' %}
{% continue %}
{% endif %}
{% if message['role'] not in ['user', 'assistant', 'tool'] %}
{{ raise_exception('Only user, assistant and tool roles, not ' + message.role) }}
{% endif %}
{% set ns.turns = ns.turns + [message] %}
{% endfor %}
{% for message in ns.turns if message.role != 'tool' %}
{% if loop.index0 > 7 %}{% break %}{% endif %}
{% set text = message.content if message.content is string
    else message.content|map(attribute='text')|select|join %}
{% if message.role == 'user' %}
{{ '[INST] ' + (ns.system if loop.first else '') + text|replace('\t', '    ') + ' [/INST]' }}
{% else %}
{% generation %}{{ ' ' ~ text.strip() ~ eos_token }}{% endgeneration %}
{% endif %}
{% set ns.n = ns.n + (loop.index if text[:3].isdigit() else 0) %}
{% endfor %}
{{ ns.n }} {{ ', '.join(ns.turns|map(attribute='role')) }} {{ ns.turns[-1].role.upper()[:4] }}
{{ ns.turns|groupby('role')|map('first')|list }} {{ (ns.turns|list)[0:2]|length }}
{{ ns.turns|rejectattr('role', 'in', ['tool', 'user'])|map(attribute='role')|unique|list }}
{{ [1, 2, 3]|sum }} {{ 'a,b'.split(',', 1) }} {{ "x" * 3 }} {{ ns.turns|batch(2)|list|length }}
{% filter upper %}done{% endfilter %} {{ dict(a=1, b=[2]) }}
{{ loop is defined }} {{ 7.0|round|int }}
{% macro wrap(tag) %}<{{ tag }} {{ kwargs }}>{{ caller(1) }}</{{ tag }}>{% endmacro %}
{% call(n) wrap('b', id='x') %}{{ n }}{% endcall %}{{ cycler('a', 'b').next() }}
"""

TEMPLATES = {"reasoning": REASONING, "tools": TOOLS, "alternating": ALTERNATING}
TOOL: dict[str, object] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather; <b> & 'ü'",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "a place"},
                "unit": {"type": "string", "enum": ["C", "F"]},
            },
        },
    },
}
CALL: dict[str, object] = {
    "type": "function",
    "function": {"name": "weather", "arguments": {"place": "Köln", "days": 2, "more": [1.5, None]}},
}
CHATS: dict[str, Row] = {
    "plain": [{"role": "user", "content": " What is 2 + 3?\n"}],
    "turns": [
        {"role": "system", "content": "Be short.\n"},
        {"role": "user", "content": "Hi\tthere"},
        {"role": "assistant", "content": "<think>\nHm.\n</think>\n\n123 Hello!"},
        {"role": "user", "content": "And 😀 <|eot_id|>?"},
    ],
    "tools": [
        {"role": "user", "content": "How is the weather?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "rain"},
        {"role": "tool", "content": "sun"},
        {"role": "assistant", "content": "Both.", "reasoning_content": "rain and sun"},
    ],
    "parts": [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c"},
    ],
    "long": [
        {"role": "user" if n % 2 == 0 else "assistant", "content": f"{n} words " * 500}
        for n in range(300)
    ],
    "unknown role": [{"role": "narrator", "content": "Once"}],
}


def _outcome(template: str, chat: Row, tools: list[dict[str, object]] | None) -> str:
    try:
        texts, _ = chat_template_utils.render_jinja_template(
            conversations=[chat],
            tools=tools,
            chat_template=template,
            add_generation_prompt=True,
            bos_token="<s>",
            eos_token="</s>",
        )
    except TemplateError as error:
        return f"{type(error).__name__}: {error}"
    return str(texts[0])


@pytest.mark.parametrize("tools", [None, [TOOL]], ids=["no tools", "a tool"])
@pytest.mark.parametrize("chat", CHATS.values(), ids=CHATS)
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_a_chat_is_rendered_as_transformers_renders_it(
    template: str, chat: Row, tools: list[dict[str, object]] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = []
    for environment in (ImmutableSandboxedEnvironment, BoundedEnvironment):
        monkeypatch.setattr(chat_template_utils, "ImmutableSandboxedEnvironment", environment)
        chat_template_utils._compile_jinja_template.cache_clear()
        assert isinstance(
            chat_template_utils._compile_jinja_template(template).environment, environment
        )
        outcomes.append(_outcome(template, chat, tools))
    chat_template_utils._compile_jinja_template.cache_clear()

    assert outcomes[1] == outcomes[0]
