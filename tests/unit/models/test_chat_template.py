"""What a chat template reads is found out by rendering, and given to it in that spelling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lion_lightning.models.chat_template import ChatTemplate
from lion_lightning.models.tokenizer import TokenizerSpec, end_of_turn_id, end_of_turn_ids

CALL = {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": {"city": "Tromsø"}}}
ASKED = {"role": "user", "content": "Hi"}
CALLING: list[dict[str, Any]] = [ASKED, {"role": "assistant", "content": "", "tool_calls": [CALL]}]


def template(text: str) -> ChatTemplate:
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return ChatTemplate(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>"), text)  # type: ignore[no-untyped-call]


def test_content_is_given_as_parts_where_the_template_reads_nothing_else() -> None:
    parts = "{% for m in messages %}{% for part in m.content %}{% if part.type == 'text' %}[{{ part.text }}]{% endif %}"
    assert template(parts + "{% endfor %}{% endfor %}").render([ASKED]) == "[Hi]"
    either = "{% for m in messages %}{{ m.content if m.content is string else m.content[0].text | upper }}{% endfor %}"
    assert template(either).render([ASKED]) == "Hi"


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        ("{{ m.content[:4] }}", "Hi"),
        ("{{ m.content if m.content is not string else 'x' }}", "x"),
        ("{{ m.content if m.content is string and m.content | length < 5 else m.content | tojson }}", "Hi"),
        ("{{ m.content | upper }}", "HI"),
        ("{{ m.content | replace('probe', '') }}", "Hi"),
    ],
)
def test_content_is_given_as_text_to_a_template_that_changes_text_and_writes_a_list_out(shown: str, text: str) -> None:
    assert template("{% for m in messages %}" + shown + "{% endfor %}").render([ASKED]) == text


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        ("{{ c.function.arguments | tojson }}", '{"city": "Tromsø"}'),
        ("{{ '' + c.function.arguments }}", '{"city": "Tromsø"}'),  # fails on a mapping
        ("{{ c.function.arguments }}", '{"city": "Tromsø"}'),  # would print it as Python does
        ("{% for key, value in c.function.arguments.items() %}{{ key }}={{ value }}{% endfor %}", "city=Tromsø"),
    ],
)
def test_arguments_are_given_as_a_mapping_or_as_json_text_by_what_the_template_shows(shown: str, text: str) -> None:
    made = template(
        "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.function.name }}:"
        + shown
        + "{% endfor %}{% endfor %}"
    )
    assert made.render(CALLING) == f"weather:{text}"


@pytest.mark.parametrize(
    "shown",
    [
        "{% if m.content is none %}{{ m.tool_calls | tojson }}{% endif %}",  # null, or the call is lost
        "{{ m.content }}{{ m.tool_calls | tojson }}",  # not null, or "None" is written
        "{{ m.content + (m.tool_calls | tojson) }}",  # not null, or it fails
        "{{ m.content | trim }}{{ m.tool_calls | tojson }}",
        "{{ m.content if m.content is defined else m.tool_calls | tojson }}",  # absent
    ],
)
def test_no_content_beside_a_call_is_null_or_empty_by_what_the_template_shows(shown: str) -> None:
    made = template("{% for m in messages %}{% if m.tool_calls %}" + shown + "{% endif %}{% endfor %}")
    assert made.render(CALLING).startswith('[{"id": "call00001"')
    assert '"arguments": {"city": "Tromsø"}' in made.render(CALLING)


def test_a_key_is_read_behind_a_dot_or_in_quotes_and_not_in_prose() -> None:
    made = template("reasoning: low {{ m.thinking }} {{ m['mood'] }} {{ enable_reasoning }}")
    assert [made.reads(key) for key in ("thinking", "mood", "reasoning", "moo")] == [True, True, False, False]


def test_a_token_that_the_tokenizer_lacks_is_named_with_the_setting() -> None:
    made = template("{{ '' + eos_token }}")
    made._tokenizer.eos_token = None
    with pytest.raises(ValueError, match=r"it writes eos_token, which tokenizer .* does not have; set tokenizer\.eos_"):
        made.render([ASKED])


@pytest.mark.parametrize(
    "text", ["{{ 1 / 0 }}", "{{ messages[7].content.x.y }}", "{{ raise_exception('no such\nrole') }}"]
)
def test_a_template_that_fails_in_any_way_is_one_line(text: str) -> None:
    with pytest.raises(ValueError, match="the chat template cannot render the row: ") as caught:
        template(text).render([ASKED])
    assert "\n" not in str(caught.value)


def test_texts_that_a_template_looks_for_in_others_are_known() -> None:
    made = template(
        "{% if '</think>' in m.content and 'word' in m %}{{ m.content.split('<a>')[0] | replace('/no', '') }}"
        "{{ '<b>' }}{% endif %}{% generation %}{% if m.role == '[c]' or m.startswith('<d>') %}x{% endif %}"
        "{% endgeneration %}"
    )
    assert made.sought == ["/no", "</think>", "<a>", "<d>"]


def test_calls_may_end_in_a_token_of_their_own(tmp_path: Path) -> None:
    words = {word: number for number, word in enumerate(["<unk>", "</s>", "<end>", "<call>"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")  # type: ignore[no-untyped-call]
    made.add_tokens(["<end>", "<call>"], special_tokens=True)
    made.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "mine.jinja").write_text(
        "{% for m in messages %}{% if m.tool_calls %}{{ m.tool_calls | tojson }} <call>{% else %}{{ m.content }} <end>"
        "{% endif %}{% endfor %}"
    )
    tokenizer = TokenizerSpec(str(tmp_path / "tokenizer"), str(tmp_path / "mine.jinja")).load()
    assert end_of_turn_ids(tokenizer) == (1, 2, 3)
    assert end_of_turn_id(tokenizer) == 2
    tokenizer.chat_template = None
    assert (end_of_turn_ids(tokenizer), end_of_turn_id(tokenizer)) == ((1,), 1)
