"""Chat templates in the manner of well-known families, conversations, and folders of a tokenizer that has one."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

CHATML = """\
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

LLAMA = """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "Answer briefly." %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" + system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

GEMMA = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{% endif %}
{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{% endfor %}
{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}
"""

MISTRAL = """\
{{ bos_token }}
{%- for message in messages -%}
{%- if message.role == 'user' %}{{ '[INST] ' + message.content + ' [/INST]' }}
{%- elif message.role == 'assistant' %}{{ ' ' + message.content + ' ' + eos_token }}
{%- else %}{{ raise_exception('Only user and assistant roles are supported!') }}
{%- endif %}
{%- endfor %}
"""

# What larger templates do: macros, namespaces, the loop's own names, JSON, the date, loop controls, generation blocks.
WORKSHOP = """\
{%- macro say(role, text, closing='<|im_end|>') -%}
<|im_start|>{{ role|upper }}|{{ text }}{{ closing }}
{% endmacro %}
{%- set ns = namespace(turns=0, tools=[]) %}
{%- set names = dict(user='U', assistant='A') %}
Today is {{ strftime_now("%Y-%m-%d") }}, tools: {{ tools is none }} {{ documents is none }}
    {% for message in messages %}
    {% if message.role == 'system' and not loop.first %}
        {% continue %}
    {% endif %}
    {% if message.tool_calls is defined %}
        {% set ns.tools = ns.tools + message.tool_calls %}
{{ message.tool_calls | tojson }}{{ message.tool_calls | tojson(indent=2, sort_keys=True) }}
    {% endif %}
    {% if message.reasoning_content is defined %}
<think>{{ message.thinking }}{{ message['reasoning'] }}{{ message.reasoning_content }}</think>
    {%- endif %}
    {% generation %}
{{ say(names.get(message.role, message.role), message.content, eos_token if loop.last else '<|im_end|>') }}
    {%- endgeneration %}
    {% set ns.turns = ns.turns + 1 %}
    {% if ns.turns == 6 %}{% break %}{% endif %}
    {% endfor %}
{% for i in range(ns.tools|length) %}{{ '=' * 3 }}{{ i ** 2 }}{% endfor %}
{{ '<b> & "q"' | tojson }}{{ 'é' | tojson(ensure_ascii=true) }}
{{ dict.fromkeys(['k'], 1) | tojson(separators=(',', ':')) }}
{% if add_generation_prompt %}{{ say('assistant', '', '') }}{% endif %}
"""

TEMPLATES = dict(chatml=CHATML, llama=LLAMA, gemma=GEMMA, mistral=MISTRAL, workshop=WORKSHOP)


def message(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


CHATS = {
    "question": [message("user", "What is 2+3?")],
    "system": [message("system", " Be <kind> & brief. \n"), message("user", "Grüße 😀\n")],
    "turns": [message("user", " a "), message("assistant", "b\n\n"), message("user", "c <|im_end|></s> d")],
    "open": [message("user", "Count."), message("assistant", "one, two")],
    "open_spaced": [message("user", "Count."), message("assistant", " one,  ")],
    "open_empty": [message("user", "Count."), message("assistant", "")],
    "not_alternating": [message("user", "a"), message("user", "b")],
    "fields": [
        message("user", "é", name=None, index=3),
        message("assistant", "", tool_calls=[{"name": "add", "arguments": {"y": 1.5, "x": ["<é>", None, True]}}]),
        message("tool", "", tool_calls=None),
        message("assistant", "five", reasoning="2 and 3"),
        message("user", "again"),
    ],
    "long": [message("user" if turn % 2 == 0 else "assistant", str(turn)) for turn in range(9)],
    "late_system": [message("user", "a"), message("system", "b"), message("user", "c")],
}
TOKENS = dict(bos_token="<s>", eos_token="</s>", pad_token="<pad>")
_MARKS = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "[INST]", "[/INST]"]


def chat_tokenizer() -> Tokenizer:
    """A byte-level tokenizer with the marks of the templates as tokens; `<s>` goes before a text, `</s>` after it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [*TOKENS.values(), *_MARKS, "<start_of_turn>", "<end_of_turn>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(["assistant user system model"] * 3, trainer)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return tokenizer


def write_folder(folder: Path, template: str | None = None, **files: str | dict[str, Any]) -> Path:
    """A Hugging Face folder: its tokenizer, a chat_template.jinja, and JSON files by name, or as they are given."""
    folder.mkdir(exist_ok=True)
    chat_tokenizer().save(str(folder / "tokenizer.json"))
    files = {"tokenizer_config": {"tokenizer_class": "PreTrainedTokenizerFast", **TOKENS}, **files}
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder
