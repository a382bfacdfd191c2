from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lion_lightning.models.tokenizer import CHAT_TEMPLATES, TokenizerSpec, end_of_turn_ids, read_template

USER, ANSWER, SYSTEM = (
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yo"},
    {"role": "system", "content": "Be kind."},
)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A saved word-level tokenizer: ``<unk> <s> </s> Hi Yo`` are the ids 0 to 4, and it has no chat template."""
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, "Hi": 3, "Yo": 4}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


def rendered(folder: str, template: str, *messages: dict[str, str], prompt: bool = False) -> str:
    tokenizer = TokenizerSpec(folder, template).load()
    return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=prompt))


def test_chatml_renders_as_published(folder: str) -> None:
    assert rendered(folder, "chatml", SYSTEM, USER, ANSWER, USER, prompt=True) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_llama3_renders_as_published_with_one_bos(folder: str) -> None:
    assert rendered(folder, "llama3", SYSTEM, USER, ANSWER, USER, prompt=True) == (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        "Yo<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_gemma_renders_as_published_with_one_bos(folder: str) -> None:
    assert rendered(folder, "gemma", USER, ANSWER, USER, prompt=True) == (
        "<s><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nYo<end_of_turn>\n"
        "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n"
    )


def test_zephyr_renders_as_published(folder: str) -> None:
    assert rendered(folder, "zephyr", SYSTEM, USER, ANSWER, USER, prompt=True) == (
        "<|system|>\nBe kind.</s>\n<|user|>\nHi</s>\n<|assistant|>\nYo</s>\n<|user|>\nHi</s>\n<|assistant|>\n"
    )


@pytest.mark.parametrize("template", ["llama3", "gemma"])
def test_content_is_trimmed_where_the_published_template_trims_it(folder: str, template: str) -> None:
    loose = {"role": "assistant", "content": "\n Yo \n"}
    assert rendered(folder, template, USER, loose) == rendered(folder, template, USER, ANSWER)


@pytest.mark.parametrize("template", CHAT_TEMPLATES)
def test_a_missing_bos_is_never_written_as_none(folder: str, template: str) -> None:
    tokenizer = TokenizerSpec(folder, template).load()
    tokenizer.bos_token = None
    text = str(tokenizer.apply_chat_template([USER, ANSWER], tokenize=False))
    assert "None" not in text
    assert text.startswith("<|" if template != "gemma" else "<start_of_turn>")


def test_a_jinja_file_is_used_as_the_template(folder: str, tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}", "utf-8")
    assert rendered(folder, str(tmp_path / "mine.jinja"), USER, ANSWER) == "[Hi][Yo]"


def test_an_unknown_template_is_refused_with_the_names_that_exist(folder: str) -> None:
    with pytest.raises(ValueError, match=r"'llama4' is neither a built-in template \(chatml, gemma, llama3, zephyr\)"):
        TokenizerSpec(folder, "llama4").load()


@pytest.mark.parametrize("path", ["./no/such/folder", "no such id"])
def test_a_missing_tokenizer_is_one_line(path: str) -> None:
    with pytest.raises(ValueError, match=r"tokenizer\.path: .*give a folder") as caught:
        TokenizerSpec(path).load()
    assert "\n" not in str(caught.value)


def test_special_tokens_are_added_once_and_stay_whole(folder: str) -> None:
    tokenizer = TokenizerSpec(folder, special_tokens=("<|im_start|>", "<|im_end|>", "</s>")).load()
    assert len(tokenizer) == 7  # five words, two of the three tokens are new
    assert tokenizer.encode("Hi<|im_end|>", add_special_tokens=False) == [3, 6]


def test_eos_token_is_replaced(folder: str) -> None:
    tokenizer = TokenizerSpec(folder, special_tokens=("<|im_end|>",), eos_token="<|im_end|>").load()
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 5)
    assert tokenizer.pad_token_id == 2


def test_an_eos_token_outside_the_vocabulary_is_refused(folder: str) -> None:
    with pytest.raises(ValueError, match=r"'<\|im_end\|>' is not in the vocabulary .* add it to"):
        TokenizerSpec(folder, eos_token="<|im_end|>").load()


def test_end_of_turn_ids_are_eos_and_the_templates_own_token(folder: str) -> None:
    llama = TokenizerSpec(folder, "llama3", special_tokens=("<|start_header_id|>", "<|eot_id|>")).load()
    assert end_of_turn_ids(llama) == (2, 6)
    assert end_of_turn_ids(TokenizerSpec(folder, "zephyr").load()) == (2,)
    assert end_of_turn_ids(TokenizerSpec(folder).load()) == (2,)  # no template at all


def test_a_marker_that_the_tokenizer_splits_is_warned_about(folder: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        TokenizerSpec(folder, "chatml").load()
    assert "'<|im_end|>', which is not a token" in caplog.text
    caplog.clear()
    TokenizerSpec(folder, "chatml", special_tokens=("<|im_end|>",)).load()
    assert caplog.text == ""


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_built_in_templates_carry_generation_tags(name: str) -> None:
    assert "{% generation %}" in read_template(name) or "{%- generation %}" in read_template(name)


@pytest.mark.parametrize("text", ['{"model": {"vocab": [[]]}}', "{}", "", "\x00", '{"version": "auto"}'])
def test_a_damaged_tokenizer_file_is_one_line_that_names_the_folder(folder: str, text: str) -> None:
    (Path(folder) / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match=r"tokenizer.path: cannot load a tokenizer from .*tokenizer'") as caught:
        TokenizerSpec(folder).load()
    assert "\n" not in str(caught.value)


# --- variables of the template

MOODY = "\n{% for m in messages %}{{ m.content }} {{ mood }} {{ sizes | tojson }};{% endfor %}"


def moody(folder: str, template: str, **variables: object) -> TokenizerSpec:
    return TokenizerSpec(folder, template, template_kwargs=variables or None)


def test_variables_of_the_template_are_its_defaults_and_change_nothing_else(folder: str, tmp_path: Path) -> None:
    tokenizer = moody(folder, MOODY, mood="sad 'é🦁\n", sizes=[1, {"a": None, "b": True}]).load()
    said = '\nHi sad \'é🦁\n [1, {"a": null, "b": true}];'
    assert tokenizer.apply_chat_template([USER], tokenize=False) == said
    given: Any = tokenizer.apply_chat_template([USER], tokenize=False, mood="gay")
    assert given == said.replace("sad 'é🦁\n", "gay")
    tokenizer.save_pretrained(tmp_path / "export")  # so that whoever loads an export has them too
    saved = TokenizerSpec(str(tmp_path / "export"))
    assert saved.load().apply_chat_template([USER], tokenize=False) == said
    assert "Hi new [1" in str(
        replace(saved, template_kwargs={"mood": "new"}).load().apply_chat_template([USER], tokenize=False)
    )


@pytest.mark.parametrize("template", CHAT_TEMPLATES)
def test_a_template_with_defaults_renders_as_without(folder: str, template: str) -> None:
    plain, own = TokenizerSpec(folder, template).load(), moody(folder, template, enable_thinking=False).load()
    for prompt in (True, False):
        texts = [
            one.apply_chat_template([USER, ANSWER], tokenize=False, add_generation_prompt=prompt)
            for one in (plain, own)
        ]
        assert texts[0] == texts[1]


def test_variables_that_the_template_does_not_read_are_warned_of(folder: str, caplog: pytest.LogCaptureFixture) -> None:
    moody(folder, MOODY, mood="", enable_thinking=False).load()
    assert [record.getMessage() for record in caplog.records] == [
        "Not used: tokenizer.template_kwargs sets enable_thinking, which the chat template does not read."
    ]


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"tools": []}, "tokenizer.template_kwargs sets 'tools', which it may not set"),
        ({"a b": 1}, "tokenizer.template_kwargs sets 'a b', which cannot be the name of a variable"),
        ({"mood": object()}, "tokenizer.template_kwargs holds a object; give text, numbers"),
    ],
)
def test_variables_that_cannot_be_set_are_refused(folder: str, variables: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        moody(folder, MOODY, **variables).load()


def test_variables_without_a_template_are_refused(folder: str) -> None:
    with pytest.raises(ValueError, match=r"tokenizer\.template_kwargs: .* has no chat template to give them to"):
        TokenizerSpec(folder, template_kwargs={"mood": "sad"}).load()
