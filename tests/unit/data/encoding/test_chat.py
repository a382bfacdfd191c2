from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lion_lightning.data.encoding.chat import ChatEncoder
from lion_lightning.data.encoding.rendering import NO_END
from lion_lightning.data.encoding.supervision import Mask
from lion_lightning.data.formats.sft import Completion, Conversation, Example, Text, recognize
from lion_lightning.data.formats.turns import Message
from lion_lightning.data.reports.row_messages import collect_messages
from lion_lightning.models.tokenizer import CHAT_TEMPLATES, TokenizerSpec, read_template
from lion_lightning.types import SampleSegment

SHARED = Path(__file__).resolve().parents[5] / "shared"
MARKERS = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>"]
MARKERS += ["<end_of_turn>", "<|user|>", "<|assistant|>", "<|system|>"]
CORPUS = (
    "Hello world, how are you today?",
    "The answer is 42\n yes",
    "user assistant system model",
    "naïve café 🦁",
)

ASKING = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
PLAIN_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    + ASKING
)


def byte_level(template: str | None = PLAIN_CHATML, corpus: Sequence[str] = CORPUS) -> PreTrainedTokenizerFast:
    """Byte-level BPE whose post-processor cuts white space off the offsets, with pad == eos and no BOS added."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        [*corpus] * 3,
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    return wrapped(backend, template, pad_token="</s>")


def metaspace(template: str | None = PLAIN_CHATML) -> PreTrainedTokenizerFast:
    """Sentencepiece-like unigram model that puts BOS before every text."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>"]
    backend.train_from_iterator(
        CORPUS * 3,
        trainers.UnigramTrainer(vocab_size=80, special_tokens=special, unk_token="<unk>", show_progress=False),
    )
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return wrapped(backend, template, unk_token="<unk>")


def wrapped(backend: Tokenizer, template: str | None, **special: str) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", **special
    )
    tokenizer.add_tokens(MARKERS, special_tokens=True)
    tokenizer.chat_template = template
    return tokenizer


def chat(*contents: str, system: str | None = None, **options: Any) -> Conversation:
    """A conversation of alternating user and assistant turns."""
    turns = [Message(("user", "assistant")[i % 2], content) for i, content in enumerate(contents)]
    first = [] if system is None else [Message("system", system)]
    return Conversation((*first, *turns), **options)


def encode(tokenizer: PreTrainedTokenizerBase, example: Example, mask: Mask = "assistant") -> SampleSegment:
    return ChatEncoder(tokenizer, mask).encode([example], ["data.jsonl:1"])[0]


def runs(piece: SampleSegment) -> list[tuple[int, int]]:
    """Start and stop of each stretch of supervised tokens."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], piece.supervised.astype(np.int8), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def trained(tokenizer: PreTrainedTokenizerBase, piece: SampleSegment) -> list[str]:
    """Text of each stretch of supervised tokens."""
    return [str(tokenizer.decode(piece.input_ids[start:stop])) for start, stop in runs(piece)]


TOKENIZERS = pytest.mark.parametrize("tokenizer", [byte_level(), metaspace()], ids=["byte-level", "metaspace"])


@TOKENIZERS
def test_every_assistant_turn_is_trained_with_the_token_that_ends_it(tokenizer: PreTrainedTokenizerFast) -> None:
    piece = encode(tokenizer, chat("Hello", "world", "how", "are you", system="today"))
    assert trained(tokenizer, piece) == ["world<|im_end|>", "are you<|im_end|>"]
    assert (piece.input_ids.dtype.name, piece.supervised.dtype.name, piece.parent) == ("int32", "bool", -1)


@TOKENIZERS
def test_completion_trains_the_last_assistant_turn(tokenizer: PreTrainedTokenizerFast) -> None:
    piece = encode(tokenizer, chat("Hello", "world", "how", "are you"), "completion")
    assert trained(tokenizer, piece) == ["are you<|im_end|>"]


@pytest.mark.parametrize("template", [PLAIN_CHATML, read_template("chatml")], ids=["untagged", "tagged"])
def test_completion_starts_where_the_prompt_turns_end(template: str) -> None:
    tokenizer = byte_level(template)
    talk = chat("a", "one", "b", "two", "c", "three", prompt_turns=3)
    assert trained(tokenizer, encode(tokenizer, talk, "completion")) == ["two<|im_end|>", "three<|im_end|>"]


@TOKENIZERS
def test_mask_none_trains_every_token(tokenizer: PreTrainedTokenizerFast) -> None:
    assert encode(tokenizer, chat("Hello", "world"), "none").supervised.all()


@TOKENIZERS
def test_user_text_that_contains_the_marker_stays_masked(tokenizer: PreTrainedTokenizerFast) -> None:
    fake = "say <|im_end|>\n<|im_start|>assistant\nworld<|im_end|>\n and stop"
    assert trained(tokenizer, encode(tokenizer, chat(fake, "yes"))) == ["yes<|im_end|>"]


def test_a_turn_that_repeats_the_user_is_found_in_its_own_place() -> None:
    tokenizer = byte_level()
    piece = encode(tokenizer, chat("yes", "yes", "yes", "yes"))
    assert trained(tokenizer, piece) == ["yes<|im_end|>"] * 2
    assert not piece.supervised[
        : len(tokenizer.encode("<|im_start|>user\nyes<|im_end|>\n<|im_start|>assistant\n"))
    ].any()


def test_end_of_turn_is_trained_where_pad_is_eos() -> None:
    zephyr = byte_level(read_template("zephyr"))
    assert zephyr.pad_token_id == zephyr.eos_token_id
    piece = encode(zephyr, chat("Hello", "world"))
    eos = np.flatnonzero(piece.input_ids == zephyr.eos_token_id)
    assert piece.supervised[eos].tolist() == [False, True]  # the user's is not trained, the assistant's is


def test_white_space_after_the_end_of_turn_is_not_trained() -> None:
    tokenizer = byte_level()
    piece = encode(tokenizer, chat("Hello", "world"))
    assert tokenizer.decode(piece.input_ids[-1:]) == "\n"
    assert piece.supervised[-2:].tolist() == [True, False]


def test_an_answer_without_an_end_token_ends_with_its_words_and_is_warned_of() -> None:
    template = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    tokenizer = byte_level(template)
    with collect_messages() as noted:
        assert trained(tokenizer, encode(tokenizer, chat("Hello", "world"))) == [" world"]
    assert noted["warning"] == {NO_END: 1}


@TOKENIZERS
@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_templates_with_and_without_generation_tags_give_the_same_mask(
    tokenizer: PreTrainedTokenizerFast, name: str
) -> None:
    tagged = read_template(name)
    untagged = tagged.replace("endgeneration %}", "endif %}").replace(" generation %}", " if true %}")
    assert "{% if add_generation_prompt %}" in untagged
    assert tagged.count("generation %}") - untagged.count("generation %}") == 2
    talk = chat("Hello", "world \n", "how 🦁", "naïve café")
    pieces = []
    for template in (tagged, untagged):
        tokenizer.chat_template = template
        pieces.append(encode(tokenizer, talk))
    tokenizer.chat_template = PLAIN_CHATML
    np.testing.assert_array_equal(pieces[0].input_ids, pieces[1].input_ids)
    np.testing.assert_array_equal(pieces[0].supervised, pieces[1].supervised)
    assert len(runs(pieces[0])) == 2


def test_tagged_mask_equals_that_of_transformers() -> None:
    tokenizer = byte_level(read_template("chatml"))
    talk = chat("Hello", "world", "how", "are you")
    turns = [{"role": turn.role, "content": turn.content} for turn in talk.messages]
    theirs: Any = tokenizer.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
    ours = encode(tokenizer, talk)
    assert ours.input_ids.tolist() == theirs["input_ids"]
    assert ours.supervised.tolist() == [bool(token) for token in theirs["assistant_masks"]]


def test_tags_inside_a_macro_are_placed_right() -> None:
    # transformers counts what was written so far, and a macro writes only when it ends
    template = (
        "{% macro turn(m) %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
        "{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\n' }}{% endmacro %}"
        "{% for m in messages %}{{ turn(m) }}{% endfor %}" + ASKING
    )
    tokenizer = byte_level(template)
    assert trained(tokenizer, encode(tokenizer, chat("Hello", "world"))) == ["world<|im_end|>"]


def test_tags_that_leave_out_the_end_of_turn_token_still_train_it() -> None:
    inner = "{% generation %}{{ m.content }}{% endgeneration %}"
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
        + inner
        + "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
        + ASKING
    )
    tokenizer = byte_level(template)
    assert trained(tokenizer, encode(tokenizer, chat("Hello", "world", "a", "b"))) == ["world<|im_end|>", "b<|im_end|>"]


@pytest.mark.parametrize("make", [byte_level, metaspace], ids=["byte-level", "metaspace"])
@pytest.mark.parametrize(("template", "count"), [("chatml", 0), ("llama3", 1), ("gemma", 1), ("zephyr", 0)])
def test_bos_stands_exactly_as_often_as_the_template_writes_it(make: Any, template: str, count: int) -> None:
    tokenizer = make(read_template(template))
    piece = encode(tokenizer, chat("Hello", "world"))
    assert (piece.input_ids == tokenizer.bos_token_id).sum() == count


# --- boundaries


def prompt_ids(tokenizer: PreTrainedTokenizerBase, talk: Conversation, turn: int) -> list[int]:
    turns = [{"role": message.role, "content": message.content} for message in talk.messages[:turn]]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return list(tokenizer.encode(text, add_special_tokens=False))


def assert_mask_is_exact(tokenizer: PreTrainedTokenizerBase, talk: Conversation, piece: SampleSegment) -> None:
    """The ids before each answer are those of its prompt alone, and the answer's ids spell its content."""
    answers = [i for i, turn in enumerate(talk.messages) if turn.role == "assistant"]
    assert len(runs(piece)) == len(answers)
    for (start, stop), turn in zip(runs(piece), answers, strict=True):
        assert piece.input_ids[:start].tolist() == prompt_ids(tokenizer, talk, turn)
        assert tokenizer.decode(piece.input_ids[start:stop]) == talk.messages[turn].content + "<|im_end|>"


def test_multi_byte_characters_at_the_edges_of_an_answer() -> None:
    tokenizer = byte_level()
    talk = chat("🦁", "🐯 é漢", "é", "\u0301x")
    assert_mask_is_exact(tokenizer, talk, encode(tokenizer, talk))


def test_an_answer_that_merges_with_the_end_of_its_prompt_is_an_error_that_names_the_row() -> None:
    tokenizer = byte_level(corpus=("\n\n\n\n",))  # two line ends are one token: the header's joins the answer's
    with pytest.raises(ValueError, match=r"data\.jsonl:1: the end of the prompt .*assistant\\n.*strip"):
        encode(tokenizer, chat("Hello", "\n\nyes"))
    assert trained(tokenizer, encode(tokenizer, chat("Hello", "yes"))) == ["yes<|im_end|>"]


def test_a_header_that_splits_otherwise_before_an_answer_is_tokenized_as_a_model_is_asked() -> None:
    # this tokenizer's pattern leaves the last of several line ends to the word behind them, unless no word is there
    tokenizer = byte_level(read_template("llama3"), corpus=("\n\n\n\n",))
    talk = chat("Hello", "world", "how", "yes")
    piece = encode(tokenizer, talk)
    assert trained(tokenizer, piece) == ["world<|eot_id|>", "yes<|eot_id|>"]
    assert piece.input_ids[: runs(piece)[0][0]].tolist() == prompt_ids(tokenizer, talk, 1)
    assert ChatEncoder(tokenizer).prompt(chat("Hello"))[1] == prompt_ids(tokenizer, talk, 1)


SPACED = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %} [INST] {{ m.content }} [/INST] {% else %}"
    "{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)


def test_a_header_that_ends_in_a_space_is_not_melted_into_the_answer() -> None:
    tokenizer = byte_level(SPACED)  # " world" is one token, and so is " "
    talk = chat("Hello", "world", "how", "42", "Hello", "!")
    piece = encode(tokenizer, talk)
    assert trained(tokenizer, piece) == ["world</s>", "42</s>", "!</s>"]
    assert tokenizer.decode(piece.input_ids) == tokenizer.apply_chat_template(
        [turn.to_dict() for turn in talk.messages], tokenize=False
    )
    assert piece.input_ids[: runs(piece)[0][0]].tolist() == prompt_ids(tokenizer, talk, 1)


def test_a_space_that_melts_is_an_error_where_the_tokenizer_puts_one_before_every_part() -> None:
    with pytest.raises(ValueError, match=r"data\.jsonl:1: the end of the prompt \('\] '\) gives other tokens"):
        encode(metaspace(SPACED), chat("Hello", "world"))


def test_trimmed_offsets_do_not_hide_a_merged_space() -> None:
    tokenizer = byte_level(None)  # " world" is one token, whose trimmed offsets begin behind the space
    with pytest.raises(ValueError, match=r"data\.jsonl:1: .*other tokens.*; give .* `format: chat` if"):
        encode(tokenizer, Completion("Hello ", "world"))
    assert trained(tokenizer, encode(tokenizer, Completion("Hello", " world"))) == [" world</s>"]


def test_a_prompt_that_tokenizes_otherwise_alone_is_an_error_though_no_token_straddles() -> None:
    # "abc" + "d" is a|bcd... in the row: merges bc, bcd first leave ab apart, which the prompt alone joins
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", "a", "b", "c", "d", "cd", "ab", "bcd", "abc"])}
    backend = Tokenizer(models.BPE(vocabulary, [("c", "d"), ("a", "b"), ("ab", "c")]))
    tokenizer = wrapped(backend, None)
    assert tokenizer.encode("abc") == [9]
    assert tokenizer.encode("abcd") == [7, 6]
    with pytest.raises(ValueError, match="other tokens"):
        encode(tokenizer, Completion("abc", "d"))


def test_a_marker_that_swallows_white_space_is_no_merge() -> None:
    template = "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    tokenizer = byte_level(None)
    tokenizer.add_tokens([AddedToken(f"<|{name}|>", rstrip=True, special=True) for name in ("end", "bot")])
    tokenizer.chat_template = template.replace("<|assistant|>", "<|bot|>").replace(
        "'<|' + m.role + '|>\n'", "('<|bot|>\n' if m.role == 'assistant' else '<|user|>\n')"
    )
    piece = encode(tokenizer, chat("Hello", "  world"))
    assert trained(tokenizer, piece) == ["world<|end|>"]


# --- templates that cannot be used


LAST_THOUGHTS = "(m['content'] if loop.last else m['content'].split('</think>')[-1])"
THOUGHTLESS = [
    PLAIN_CHATML.replace("m['content']", LAST_THOUGHTS),
    read_template("chatml").replace(
        "{{- message['content'] +", "{{- " + LAST_THOUGHTS.replace("m[", "message[") + " +", 1
    ),
]


@pytest.mark.parametrize("template", THOUGHTLESS, ids=["untagged", "tagged"])
def test_thoughts_that_a_template_drops_are_an_error_where_they_were_to_be_trained(template: str) -> None:
    tokenizer = byte_level(template)
    talk = chat("a", "hm</think>b", "c", "so</think>d")
    with pytest.raises(ValueError, match=r"data\.jsonl:1: .*leaves out the row's content \('hm'\) of message 1"):
        encode(tokenizer, talk)
    assert trained(tokenizer, encode(tokenizer, talk, "completion")) == ["so</think>d<|im_end|>"]


def test_a_role_that_the_template_lacks_is_an_error_that_names_the_row() -> None:
    with pytest.raises(ValueError, match=r"data\.jsonl:1: .* gemma has no system role, only user and assistant"):
        encode(byte_level(read_template("gemma")), chat("a", "b", system="c"))


def test_a_tokenizer_without_a_template_is_an_error_with_the_fix() -> None:
    with pytest.raises(
        ValueError, match=r"no chat template; set tokenizer\.chat_template: chatml \| .* or a jinja file"
    ):
        encode(byte_level(None), chat("a", "b"))


def test_tools_that_the_template_would_leave_out_are_an_error() -> None:
    with pytest.raises(ValueError, match="leaves out the row's tools"):
        encode(byte_level(), chat("a", "b", tools=({"type": "function"},)))
    call = {"type": "function", "function": {"name": "add", "arguments": {}}}
    called = Conversation((Message("user", "a"), Message("assistant", "b", {"tool_calls": [call]})))
    with pytest.raises(ValueError, match="leaves out the row's tool_calls"):
        encode(byte_level(), called)


def test_a_template_that_fails_in_jinja_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"data\.jsonl:1: the chat template cannot render the row: ") as caught:
        encode(byte_level("{{ messages[0]['content'] + nothing }}"), chat("a", "b"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mask", ["assistant", "completion"])
@pytest.mark.parametrize("template", [PLAIN_CHATML, read_template("chatml")], ids=["untagged", "tagged"])
def test_a_row_without_an_assistant_turn_is_an_error(template: str, mask: Mask) -> None:
    with pytest.raises(ValueError, match=r"data\.jsonl:1: no assistant turn to train"):
        encode(byte_level(template), chat("only a question"), mask)


def test_half_a_character_is_an_error_that_names_the_row() -> None:
    with pytest.raises(ValueError, match=r"b:2: the text is not valid Unicode"):
        ChatEncoder(byte_level()).encode([Text("good"), Text("bad \ud83d")], ["a:1", "b:2"])


def test_an_unknown_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="'user' is unknown; choose assistant, completion, last_turn, none"):
        ChatEncoder(byte_level(), "user")  # type: ignore[arg-type]


def test_a_default_system_turn_is_masked_and_an_opening_answer_is_trained() -> None:
    first = "{% if loop.first and m.role != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
    tokenizer = byte_level(PLAIN_CHATML.replace("{% for m in messages %}", "{% for m in messages %}" + first))
    talk = Conversation((Message("assistant", "Hello"), Message("user", "how"), Message("assistant", "yes")))
    assert trained(tokenizer, encode(tokenizer, talk)) == ["Hello<|im_end|>", "yes<|im_end|>"]


# --- plain text


@TOKENIZERS
def test_a_completion_is_closed_by_one_trained_eos(tokenizer: PreTrainedTokenizerFast) -> None:
    for completion in (" world", " world</s>"):
        piece = encode(tokenizer, Completion("Hello", completion))
        assert (piece.input_ids == tokenizer.eos_token_id).sum() == 1
        assert trained(tokenizer, piece) == [tokenizer.decode(tokenizer.encode(" world</s>", add_special_tokens=False))]


def test_plain_text_gets_bos_only_from_a_tokenizer_that_adds_it() -> None:
    for tokenizer, count in ((byte_level(), 0), (metaspace(), 1)):
        for text in ("Hello", "<s>Hello"[3 * (1 - count) :]):  # BOS that is already there is not doubled
            assert (encode(tokenizer, Text(text)).input_ids == tokenizer.bos_token_id).sum() == count


@pytest.mark.parametrize("mask", ["assistant", "completion", "none"])
def test_raw_text_is_trained_whole_under_every_mask(mask: Mask) -> None:
    tokenizer = metaspace()
    piece = encode(tokenizer, Text("Hello world"), mask)
    assert piece.supervised.all()
    assert piece.input_ids.tolist() == [*tokenizer.encode("Hello world"), tokenizer.eos_token_id]


def test_a_completion_is_trained_whole_under_mask_none() -> None:
    assert encode(metaspace(), Completion("Hello", " world"), "none").supervised.all()


def test_plain_text_without_an_eos_token_is_an_error_with_the_fix() -> None:
    tokenizer = byte_level()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match=r"data\.jsonl:1: .* has no EOS token .*set tokenizer\.eos_token"):
        encode(tokenizer, Text("Hello"))


# --- the encoder as an object

EXAMPLES: Sequence[Example] = (
    chat("Hello", "world"),
    Completion("Hello", " world"),
    Text("today"),
    chat("a", "b", "c", "d"),
)


def assert_same_pieces(first: Sequence[SampleSegment], second: Sequence[SampleSegment]) -> None:
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.input_ids, other.input_ids)
        np.testing.assert_array_equal(one.supervised, other.supervised)


def test_a_batch_equals_its_rows_one_by_one_and_keeps_their_order() -> None:
    encoder = ChatEncoder(byte_level())
    batch = encoder.encode(EXAMPLES, ["x"] * len(EXAMPLES))
    assert_same_pieces(batch, [encoder.encode([example], ["x"])[0] for example in EXAMPLES])
    assert encoder.encode([], []) == []


def test_a_pickled_copy_and_other_threads_give_the_same() -> None:
    encoder = ChatEncoder(byte_level(read_template("chatml")))
    expected = encoder.encode(EXAMPLES, ["x"] * len(EXAMPLES))
    copied: ChatEncoder = pickle.loads(pickle.dumps(encoder))
    assert copied.fingerprint() == encoder.fingerprint()
    with ThreadPoolExecutor(4) as pool:
        for pieces in pool.map(lambda _: copied.encode(EXAMPLES, ["x"] * len(EXAMPLES)), range(16)):
            assert_same_pieces(expected, pieces)


def test_truncation_left_on_in_the_tokenizer_does_not_cut_rows() -> None:
    tokenizer = byte_level()
    expected = encode(tokenizer, chat("Hello", "world"))
    tokenizer("Hello world", truncation=True, max_length=2)
    assert_same_pieces([encode(tokenizer, chat("Hello", "world"))], [expected])


def test_the_fingerprint_changes_with_all_that_changes_a_piece() -> None:
    def bigger() -> PreTrainedTokenizerFast:
        tokenizer = byte_level()
        tokenizer.add_tokens(["lion"])
        return tokenizer

    def other_eos() -> PreTrainedTokenizerFast:
        tokenizer = byte_level()
        tokenizer.eos_token = "<|im_end|>"
        return tokenizer

    base = ChatEncoder(byte_level()).fingerprint()
    assert base == ChatEncoder(byte_level()).fingerprint()
    others = (byte_level("x"), bigger(), other_eos(), metaspace())
    prints = {base, ChatEncoder(byte_level(), "none").fingerprint(), *(ChatEncoder(t).fingerprint() for t in others)}
    assert len(prints) == 6


# --- a real tokenizer on real data


@pytest.fixture(scope="module")
def smollm2() -> PreTrainedTokenizerBase:
    folder = os.environ.get("LION_SMOLLM2", "")
    if not Path(folder, "tokenizer.json").is_file():
        pytest.skip("set LION_SMOLLM2 to a SmolLM2-135M-Instruct folder")
    return TokenizerSpec(folder).load()


def real_rows() -> Iterator[dict[str, Any]]:
    with open(SHARED / "data/gsm8k/train.jsonl", encoding="utf-8") as lines:
        yield from (json.loads(line) for _, line in zip(range(100), lines, strict=False))
    yield from json.loads((SHARED / "data/fastchat/sharegpt_sample.json").read_text("utf-8"))[:150]


@pytest.mark.slow
@pytest.mark.parametrize("template", [None, "chatml"])
def test_masks_of_real_conversations_are_exact(smollm2: PreTrainedTokenizerBase, template: str | None) -> None:
    if not (SHARED / "data").is_dir():
        pytest.skip("needs the real data in ../shared/data")
    assert smollm2.pad_token_id == smollm2.eos_token_id
    tokenizer = TokenizerSpec(smollm2.name_or_path, template).load()
    talks = [talk for row in real_rows() if isinstance(talk := recognize(row), Conversation)]
    assert len(talks) == 250
    for talk, piece in zip(talks, ChatEncoder(tokenizer).encode(talks, [""] * len(talks)), strict=True):
        assert_mask_is_exact(tokenizer, talk, piece)
