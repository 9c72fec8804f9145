"""Chat templates as model files carry them, and others that attack whoever renders them."""

# ruff: noqa: E501

LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA_3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
ZEPHYR = (  # TinyLlama's too
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
    "{{ '<|user|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n"
    "{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
QWEN_2_5 = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.' }}
    {%- endif %}
    {{- "\\n\\n# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- message.content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
QWEN_3 = """{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content %}
        {%- set reasoning_content = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
PHI_3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{'<|' + message['role'] + '|>' + '\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
MACROS = """{%- macro turn(role, text) -%}
<|im_start|>{{ role }}
{{ text | trim }}{{ caller() if caller else '' }}<|im_end|>
{%- endmacro -%}
{%- for m in messages if m.role in ['user', 'assistant'] -%}
{%- set body -%}{{ turn(m.role, m.content) }}{%- endset -%}
{{ body ~ '\\n' }}
{%- if loop.index == 2 -%}{%- break -%}{%- endif -%}
{%- endfor -%}
{%- call turn('tool', messages | map(attribute='role') | join(', ')) -%}!{%- endcall -%}
{%- filter upper -%}end {{ messages | selectattr('role', 'equalto', 'user') | list | length }}{%- endfilter -%}
"""
REAL = {
    "llama-2": LLAMA_2,
    "llama-3": LLAMA_3,
    "mistral": MISTRAL,
    "zephyr": ZEPHYR,
    "qwen-2.5": QWEN_2_5,
    "qwen-3": QWEN_3,
    "phi-3": PHI_3,
    "macros": MACROS,
}

# What is refused when the file is loaded.
UNUSABLE = {
    "not a template": "{% for %}",
    "unfinished": "{{ messages[0",
    "unknown filter": "{{ 'a' | xmlattr }}",
    "unknown test": "{{ 1 is sameas 1 }}",
    "random": "{{ [1, 2] | random }}",
    "include": "{% include 'other' %}",
    "import": "{% import 'other' as other %}",
    "extends": "{% extends 'other' %}",
    "block": "{% block a %}{% endblock %}",
    "recursive loop": "{% for a in [[]] recursive %}{{ loop(a) }}{% endfor %}",
    "unpacked arguments": "{{ range(*[1]) }}",
    "unpacked keywords": "{{ namespace(**{}) }}",
    "huge integer": "{{ 99999999999999999999 }}",
    "integer beyond any conversion": "{{ " + "9" * 5000 + " }}",
    "nested brackets": "{{ " + "(" * 17 + "1" + ")" * 17 + " }}",
    "very nested brackets": "{{ " + "[" * 20000 + " }}",
    "nested signs": "{{ " + "- " * 5000 + "1 }}",
    "nested negations": "{{ " + "not " * 5000 + "1 }}",
    "nested sums": "{{ " + "1 + " * 5000 + "1 }}",
    "nested conditions": "{% if a %}" * 60 + "{% endif %}" * 60,
    "nested choices": "{{ " + "1 if 1 else " * 3000 + "1 }}",
    "many branches": "{% if a %}" + "{% elif a %}" * 65 + "{% endif %}",
    "nested loops": "{% for a in [1] %}" * 7 + "{% endfor %}" * 7,
    "autoescape": "{% autoescape true %}{% endautoescape %}",
    "long": "a" * 65_537,
}
# What is refused when a conversation is rendered, with the code.
HOSTILE = {
    "loop in a loop": (
        "{% for a in range(30000) %}{% for b in range(30000) %}{% endfor %}{% endfor %}",
        "chat.steps",
    ),
    "long range": ("{{ range(999999999999) | list }}", "chat.steps"),
    "long product": ("{{ 'a' * 999999999 }}", "chat.steps"),
    "doubling": (
        "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "chat.steps",
    ),
    "doubling by join": (
        "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "chat.steps",
    ),
    "doubling by replace": (
        "{% set n = namespace(x='aa') %}{% for i in range(99) %}{% set n.x = n.x | replace('a', n.x) %}{% endfor %}",
        "chat.steps",
    ),
    "doubling by macro": (
        "{% macro f(x, n) %}{{ x }}{{ x }}{% endmacro %}{% set n = namespace(x='aa') %}"
        "{% for i in range(99) %}{% set n.x = f(n.x) %}{% endfor %}",
        "chat.steps",
    ),
    "a long block": (
        "{% set x %}{% for i in range(99999) %}{{ messages[0].content }}{% endfor %}{% endset %}",
        "chat.steps",
    ),
    "a tree of lists, compared": (
        "{% set n = namespace(x=[1]) %}{% for i in range(25) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x == n.x }}",
        "chat.steps",
    ),
    "a tree of lists, printed": (
        "{% set n = namespace(x=[1]) %}{% for i in range(25) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
        "chat.steps",
    ),
    "a tree of lists, as JSON": (
        "{% set n = namespace(x=[1]) %}{% for i in range(25) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x | tojson }}",
        "chat.steps",
    ),
    "a deep list": (
        "{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = [n.x] %}{% endfor %}{{ n.x }}",
        "chat.value",
    ),
    "a list, printed": ("{{ messages }}", "chat.value"),
    "a dictionary, joined": ("{{ 'a' ~ messages[0] }}", "chat.value"),
    "stripping a long text of many characters": (
        "{% set x = 'a' * 1000000 %}{{ x.strip('b' * 1000000 + 'a') }}",
        "chat.steps",
    ),
    "searching from the end": ("{% set x = 'a' * 1000000 %}{{ x.rfind('ab' + 'a' * 400000) }}", "chat.steps"),
    "slices of a long text": (
        "{% set x = 'a' * 1000000 %}{% for i in range(99999) %}{% set y = x[1:] %}{% endfor %}",
        "chat.steps",
    ),
    "comparing long texts": (
        "{% set x = 'a' * 1000000 %}{% for i in range(99999) %}{% if x ~ 'b' == x ~ 'c' %}{% endif %}{% endfor %}",
        "chat.steps",
    ),
    "searching a long text": (
        "{% set x = 'a' * 1000000 %}{% for i in range(99999) %}{% if 'b' in x %}{% endif %}{% endfor %}",
        "chat.steps",
    ),
    "much output": ("{% for i in range(3000) %}{{ messages[0].content }}{% endfor %}", "chat.output"),
    "a macro without end": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "chat.value"),
    "a power": ("{{ 9 ** 9 ** 9 }}", "chat.value"),
    "a large number": ("{{ 9223372036854775807 + 1 }}", "chat.value"),
    "a large negative number": ("{{ -9223372036854775807 * 3 }}", "chat.value"),
    "a width": ("{{ '%999999999d' % 1 }}", "chat.value"),
    "a format width": ("{{ '{:999999999}'.format(1) }}", "chat.render"),
    "an object's address": ("{{ range }}", "chat.value"),
    "a macro's address": ("{% macro f() %}{% endmacro %}{{ f }}", "chat.value"),
    "a loop's address": ("{% for m in messages %}{{ loop }}{% endfor %}", "chat.value"),
    "the template itself": ("{{ self }}", "chat.value"),
    "an address in a list": ("{{ [namespace] }}", "chat.value"),
    "an address by joining": ("{{ 'a' ~ namespace() }}", "chat.value"),
    "a class": ("{{ ''.__class__.__mro__ }}", "chat.render"),
    "globals of a function": ("{{ raise_exception.__globals__['x'] }}", "chat.render"),
    "a class by filter": ("{{ messages | map(attribute='__class__') | first + '' }}", "chat.value"),
    "an own filter by name": ("{{ ['a'] | map('@own') | list }}", "chat.value"),
    "changing the messages": ("{{ messages.append(1) }}", "chat.render"),
    "changing a message": ("{{ messages[0].update({'a': 1}) }}", "chat.render"),
    "a clock": ("{{ strftime_now('%Y') }}", "chat.render"),
    "a list as a key": ("{{ {[1]: 2} }}", "chat.value"),
    "a tuple as a key": ("{{ messages[0][(1, 2)] }}", "chat.value"),
    "division by zero": ("{{ 1 / 0 }}", "chat.render"),
    "text plus nothing": ("{{ 'a' + missing }}", "chat.value"),
    "a loop over a number": ("{% for a in 5 %}{% endfor %}", "chat.value"),
    "its own refusal": ("{{ raise_exception('only poems') }}", "chat.refused"),
}
