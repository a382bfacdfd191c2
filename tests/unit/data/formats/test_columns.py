"""No column of a row is dropped without a word: it is read, known to be harmless, counted, or refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lion_lightning.data.formats.answers.preference import recognize_preferences
from lion_lightning.data.formats.pairing import BestWorst, PromptAnswers
from lion_lightning.data.formats.sft import Completion, Conversation, recognize
from lion_lightning.data.formats.turns import Message
from lion_lightning.data.reports.row_messages import RowMessages, collect_messages, collect_row_messages
from lion_lightning.data.sources.readers import Row
from lion_lightning.data.sources.source import Source
from lion_lightning.rollouts.prompts.forms import recognize_prompt
from tests.unit.data.pairs import pair_of


def chat(*contents: str, prompt_turns: int | None = None) -> Conversation:
    roles = ("user", "assistant") * len(contents)
    return Conversation(tuple(map(Message, roles, contents)), prompt_turns)


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in chat(*contents).messages]


def pairs(row: dict[str, Any], columns: dict[str, str] | None = None) -> list[PromptAnswers]:
    return recognize_preferences(row, columns, BestWorst())


READERS = (recognize, lambda row: recognize_preferences(row, None, BestWorst()), recognize_prompt)
ROWS: tuple[dict[str, Any], ...] = (
    {"messages": turns("Hi", "Hello")},
    {"instruction": "Hi", "output": "Hello"},
    {"question": "Hi", "answer": "Hello"},
    {"prompt": "Hi", "completion": "Hello"},
    {"prompt": turns("Hi"), "completion": turns("Hi", "Hello")[1:]},
)
PAIRS: tuple[dict[str, Any], ...] = (
    {"prompt": "Hi", "chosen": "a", "rejected": "b"},
    {"question": "Hi", "answers": ["a", "b"], "scores": [1, 0]},
    {"chosen": turns("Hi", "a"), "rejected": turns("Hi", "b")},
)
EVERY = [(recognize, row) for row in ROWS] + [(pairs, row) for row in PAIRS]
PROMPT_ROWS = [*ROWS, *PAIRS, {"prompt": "Hi"}, {"question": "Hi"}, {"messages": turns("Hi")}]


def noted(read: Any, row: dict[str, Any]) -> RowMessages:
    with collect_messages() as notes, collect_row_messages():
        read(row)
    return but_forms(notes)


def but_forms(notes: RowMessages) -> RowMessages:
    """All messages but those that say how each row was read."""
    return RowMessages.of({kind: texts for kind, texts in notes.items() if kind != "form"})


# --- columns that change what a row means

CHANGING: dict[str, Any] = {
    "image": "a.png",
    "images": ["a.png"],
    "videos": [{"path": "a.mp4"}],
    "audio": {"path": "a.wav"},
    "context": "Norway is in Europe.",
    "documents": [{"text": "Norway is in Europe."}],
    "tool_definitions": [{"name": "add"}],
    "reasoning": "First, ...",
    "weight": 0.5,
    "label": False,
    "desirable": "false",
}
OF_THE_ANSWER = {"reasoning", "weight", "label", "desirable"}


@pytest.mark.parametrize("name", CHANGING)
def test_a_column_that_changes_the_meaning_is_refused_by_name_in_every_form(name: str) -> None:
    for read, row in EVERY:
        with pytest.raises(
            ValueError, match=rf"^the column '{name}' holds .*, and .* has no place for it; .*`ignore: \[{name}\]`$"
        ):
            read(row | {name: CHANGING[name]})
    for row in PROMPT_ROWS:
        if name in OF_THE_ANSWER:
            recognize_prompt(row | {name: CHANGING[name]})  # answers are not trained here
        else:
            with pytest.raises(ValueError, match=f"^the column '{name}'"):
                recognize_prompt(row | {name: CHANGING[name]})


@pytest.mark.parametrize("name", CHANGING)
@pytest.mark.parametrize("value", [None, "", " ", [], {}, [None]])
def test_a_column_that_says_nothing_changes_nothing(name: str, value: Any) -> None:
    for read, row in EVERY:
        assert noted(read, row | {name: value}) == noted(read, row)


@pytest.mark.parametrize("value", [True, 1, 1.0, "true", "1"])
def test_a_wanted_answer_and_a_weight_of_one_are_what_they_are_trained_as(value: Any) -> None:
    assert recognize({"prompt": "2+2=", "completion": "4", "label": value}) == Completion("2+2=", "4")
    assert recognize({"question": "Hi", "answer": "Hello", "weight": value}) == chat("Hi", "Hello")


@pytest.mark.parametrize("value", [False, 0, 0.0, -1, "false", "False", "0", [True, False]])
def test_an_answer_that_is_not_wanted_is_no_target(value: Any) -> None:
    with pytest.raises(ValueError, match=r"the column 'label' holds the mark of an answer that is not wanted"):
        recognize({"prompt": "2+2=", "completion": "5", "label": value})


NO_WORDS = ["bad", "dislike", "thumbs_down", "Thumbs-Down", "negative", "Rejected", "undesirable", "incorrect", "WRONG"]


@pytest.mark.parametrize(
    "value",
    [*NO_WORDS, "false", "no", "not helpful", "not_good.", "non-preferred", "unchosen", "👎🏽", ["good", "bad"]],
)
def test_a_label_that_says_no_in_words_is_refused_in_every_form(value: Any) -> None:
    for read, row in EVERY:
        with pytest.raises(ValueError, match=r"^the column 'label' holds the mark of an answer that is not wanted"):
            read(row | {"label": value})


@pytest.mark.parametrize("name", ["is_good", "isGood", "is_safe", "verified", "good", "thumbs", "feedback", "vote"])
@pytest.mark.parametrize("value", [False, 0, "no"])
def test_other_names_of_a_label_say_no_too(name: str, value: Any) -> None:
    for read, row in EVERY:
        with pytest.raises(ValueError, match=f"^the column '{name}' holds the mark of an answer that is not wanted"):
            read(row | {name: value})
        assert noted(read, row | {name: True}) == noted(read, row)


@pytest.mark.parametrize("name", ["preference", "chosen_label", "is_chosen"])
def test_a_preference_that_says_no_is_refused(name: str) -> None:
    for read, row in EVERY:
        with pytest.raises(ValueError, match=f"^the column '{name}'"):
            read(row | {name: "rejected"})


@pytest.mark.parametrize("name", ["thumbs_down", "is_bad", "incorrect"])
def test_a_yes_under_the_name_of_a_fault_is_refused(name: str) -> None:
    for read, row in EVERY:
        with pytest.raises(ValueError, match=f"^the column '{name}' holds the mark of an answer that is not wanted"):
            read(row | {name: True})
        read(row | {name: False})


@pytest.mark.parametrize("value", ["good", "like", "thumbs_up", "positive", "chosen", "desirable", "Correct", "yes"])
def test_a_label_that_says_yes_in_words_is_what_is_trained(value: str) -> None:
    assert noted(recognize, {"question": "Hi", "answer": "Hello", "label": value}) == {}


@pytest.mark.parametrize("name", ["label", "rating", "quality", "Rating", "verdict"])
@pytest.mark.parametrize("value", ["Bad answer", "poor", "bad_response", "Wrong answer."])
def test_a_word_that_says_no_is_refused_with_what_it_is_said_of_and_under_ratings(name: str, value: str) -> None:
    for read, row in EVERY:
        with pytest.raises(ValueError, match=f"^the column '{name}' holds the mark of an answer that is not wanted"):
            read(row | {name: value})
        assert noted(read, row | {name: "Good answer"}) == noted(read, row)


@pytest.mark.parametrize("name", ["label", "rating", "quality"])
@pytest.mark.parametrize("value", ["low", "HIGH", "medium quality", "very_low"])
def test_a_grade_in_words_is_warned_of(name: str, value: str) -> None:
    notes = noted(recognize, {"question": "Hi", "answer": "Hello", name: value})
    ((said, count),) = notes["warning"].items()
    assert (list(notes), count) == (["warning"], 1)
    assert said.startswith(f"the column '{name}' grades in words, and all rows are trained alike: leave those that are")


def test_a_rating_in_numbers_is_counted_whatever_it_is() -> None:
    for value in (0, -1, 0.5, "0", 5):
        assert noted(recognize, {"question": "Hi", "answer": "Hello", "rating": value}) == {"unused": {"rating": 1}}


@pytest.mark.parametrize("value", ["weather", "sports", "B", "No 1", "_" * 100_000, 3, 0.5])
def test_a_class_that_is_no_yes_or_no_is_counted(value: Any) -> None:
    assert noted(recognize, {"text": "Oslo is wet.", "label": value}) == {"unused": {"label": 1}}


MEDIA_NAMES = (
    *("audios", "input_audio", "audio_path", "audio_paths", "image_0"),
    *("image1", "input_images", "user_image", "image_bytes", "imageUrls"),
    *("video_url", "pixel_values", "pixel_values_videos", "img", "photos"),
    *("picture", "picture_file", "image_grid_thw", "image_file_name"),
    *("media", "frames", "video_frames", "speech", "speech_path", "audio", "audio_clip", "recording", "media_urls"),
)
HISTORY_NAMES = (
    *("chat_history", "chatHistory", "conversation_history", "dialogue_history"),
    *("dialog_history", "message_history", "previous_messages", "prev_turns"),
    *("past", "past_messages", "context_messages"),
)


@pytest.mark.parametrize("name", MEDIA_NAMES)
def test_pictures_and_sounds_are_refused_under_all_their_names(name: str) -> None:
    for read, row in [*EVERY, *((recognize_prompt, row) for row in PROMPT_ROWS)]:
        with pytest.raises(ValueError, match=rf"^the column '{name}' holds an image or sound, .*`ignore: "):
            read(row | {name: [0.5, 0.25]})


@pytest.mark.parametrize(
    "name",
    [
        "image_id",
        "num_images",
        "has_audio",
        "image_count",
        "imagery",
        "medical_history",
        "time_frame",
        "social_media",
        "media_type",
        "frame_rate",
        "speech_rate",
    ],
)
def test_what_is_only_said_of_pictures_and_other_histories_stops_no_row(name: str) -> None:
    assert noted(recognize, ROWS[1] | {name: 2}) == {"unused": {name: 1}}


@pytest.mark.parametrize(
    "value",
    [
        {"bytes": b"\x89PNG\r\n", "path": None},
        {"array": [0.1], "sampling_rate": 16_000, "path": "a.wav"},
        b"RIFF\x00\x00WAVE",
        [b"\xff\xd8\xff\xe0"],
        "data:image/png;base64,AAAA",
    ],
)
def test_pictures_and_sounds_are_refused_by_what_they_are_under_any_name(value: Any) -> None:
    for read, row in [*EVERY, *((recognize_prompt, row) for row in PROMPT_ROWS)]:
        with pytest.raises(ValueError, match=r"^the column 'scan' holds an image or sound"):
            read(row | {"scan": value})
    assert noted(recognize, ROWS[1] | {"hash": b"\x00\x01"}) == {"unused": {"hash": 1}}


@pytest.mark.parametrize("name", HISTORY_NAMES)
def test_earlier_rounds_are_refused_under_all_their_names_and_read_where_columns_say_so(name: str) -> None:
    for earlier in ([["Double one.", "two"]], turns("Double one.", "two")):
        for read, row in [*EVERY, *((recognize_prompt, row) for row in PROMPT_ROWS)]:
            with pytest.raises(
                ValueError, match=rf"^the column '{name}' holds earlier rounds .*`columns: {{history: ...}}` reads them"
            ):
                read(row | {name: earlier})
        row = {"instruction": "And two?", "output": "four", name: earlier}
        assert recognize(row, {"history": name}) == chat("Double one.", "two", "And two?", "four")
    assert noted(recognize, {"messages": turns("Hi", "Hello", "So?", "Well."), name: turns("Hi", "Hello")}) == {}


def test_history_becomes_the_turns_before_the_instruction() -> None:
    row = {
        "instruction": "And three?",
        "input": "",
        "output": "six",
        "history": [["Double one.", "two"], ["Double two.", "four"]],
    }
    talk = chat("Double one.", "two", "Double two.", "four", "And three?", "six")
    assert recognize(row) == talk
    assert recognize(row | {"history": '[["Double one.", "two"], ["Double two.", "four"]]'}) == talk
    assert recognize(row | {"history": turns("Double one.", "two", "Double two.", "four")}) == talk
    assert recognize(row | {"history": []}) == chat("And three?", "six")
    pair = {"chosen": "six", "rejected": "five"}
    asked = {key: value for key, value in row.items() if key != "output"}
    assert pairs(asked | pair)[0].answers[0] == talk._replace(prompt_turns=5)
    assert recognize_prompt(asked) == Conversation(talk.messages[:5], 5)


def test_a_broken_round_of_the_history_is_named() -> None:
    with pytest.raises(ValueError, match=r"history\[1\] is not a round of two texts"):
        recognize({"instruction": "a", "output": "b", "history": [["c", "d"], ["e"]]})


def test_the_system_column_is_read_in_every_chat_and_may_repeat_the_first_turn() -> None:
    system = Message("system", "Be kind.")
    for row in (*ROWS[:3], ROWS[4]):
        read = recognize(row | {"system": "Be kind."})
        assert isinstance(read, Conversation)
        assert read.messages == (system, *chat("Hi", "Hello").messages)
    own = {"messages": [{"role": "system", "content": "Be kind."}, *turns("Hi", "Hello")]}
    assert recognize(own | {"system": "Be kind. "}) == recognize(own)
    with pytest.raises(ValueError, match="the column 'system' and the first message differ"):
        recognize(own | {"system": "Be brief."})
    with pytest.raises(ValueError, match=r"the column 'system' .*`format: chat` makes a chat of plain text"):
        recognize(ROWS[3] | {"system": "Be kind."})


@pytest.mark.parametrize("name", ["tools", "functions"])
def test_tools_are_read_in_every_chat_and_refused_beside_plain_text(name: str) -> None:
    tool = {"type": "function", "function": {"name": "add"}}
    for row in (*ROWS[:3], ROWS[4]):
        read = recognize(row | {name: [tool]})
        assert isinstance(read, Conversation)
        assert read.tools == (tool,)
    with pytest.raises(ValueError, match=f"the column '{name}'"):
        recognize(ROWS[3] | {name: [tool]})
    with pytest.raises(ValueError, match="the columns 'tools' and 'functions' differ"):
        recognize(ROWS[0] | {"tools": [tool], "functions": [{"name": "sub"}]})


def test_settings_of_the_template_are_read_in_every_chat() -> None:
    for value in ({"enable_thinking": False, "style": None}, '{"enable_thinking": false}'):
        read = recognize(ROWS[1] | {"chat_template_kwargs": value})
        assert isinstance(read, Conversation)
        assert read.chat_template_kwargs == {"enable_thinking": False}
    with pytest.raises(ValueError, match="chat_template_kwargs is list, not an object"):
        recognize(ROWS[1] | {"chat_template_kwargs": [1]})
    with pytest.raises(ValueError, match="the column 'chat_template_kwargs'"):
        recognize(ROWS[3] | {"chat_template_kwargs": {"enable_thinking": False}})


@pytest.mark.parametrize("options", [{"format": "chta"}, {"ignore": "image"}])
def test_settings_of_a_source_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^a\.jsonl: (format is 'chta'; choose chat or text|ignore is the text)"):
        Source("a.jsonl", **options)


# --- several prompts


def test_a_prompt_in_another_column_is_the_prompt_of_a_pair() -> None:
    answers = {"chosen": "The capital is Oslo.", "rejected": "The capital is Bergen."}
    expected = pair_of(
        chat("Name it.", answers["chosen"], prompt_turns=1), chat("Name it.", answers["rejected"], prompt_turns=1)
    )
    for prompt in (
        {"instruction": "Name it.", "input": ""},
        {"messages": turns("Name it.")},
        {"conversations": [{"from": "human", "value": "Name it."}]},
    ):
        assert pairs(prompt | answers) == [expected]
        assert recognize_prompt(prompt | answers) == expected.answers[0]
    longer = pairs({"instruction": "Name it.", "input": "Norway"} | answers)[0].answers[0]
    assert isinstance(longer, Conversation)
    assert longer.messages[0].content == "Name it.\n\nNorway"


def test_messages_beside_a_pair_may_repeat_its_chosen_side() -> None:
    whole = {"chosen": turns("Hi", "a"), "rejected": turns("Hi", "b")}
    assert pairs(whole | {"messages": turns("Hi", "a")}) == pairs(whole)
    assert pairs(whole | {"messages": turns("Hi")}) == pairs(whole)
    assert pairs({"messages": turns("Hi", "a"), "chosen": "a", "rejected": "b"}) == pairs(whole)
    with pytest.raises(ValueError, match="chosen holds, after the prompt, the turns user, assistant"):
        pairs(whole | {"messages": turns("Bye")})


@pytest.mark.parametrize(
    ("read", "row"),
    [
        (recognize, {"messages": turns("Hi", "Hello"), "prompt": "Bye"}),
        (recognize, {"question": "Hi", "answer": "Hello", "instruction": "Answer in French."}),
        (pairs, {"prompt": "Hi", "chosen": "a", "rejected": "b", "question": "Bye"}),
        (pairs, {"prompt": "Hi", "chosen": "a", "rejected": "b", "messages": turns("Bye", "a")}),
        (recognize_prompt, {"question": "Hi", "prompt": "Bye"}),
    ],
)
def test_two_prompts_that_differ_are_refused(read: Any, row: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"asks something else than .*`columns` which of them"):
        read(row)


def test_a_second_prompt_may_repeat_the_first_or_render_it() -> None:
    talk = {"messages": turns("Hi", "Hello", "So?", "Well.")}
    for prompt in ("Hi", "So?", "<|user|>Hi<|end|><|assistant|>Hello<|end|><|user|>So?<|end|>"):
        assert recognize(talk | {"prompt": prompt}) == chat("Hi", "Hello", "So?", "Well.")


def test_a_column_that_repeats_what_was_read_is_not_lost() -> None:
    row = {"messages": [{"role": "system", "content": "Be kind. Oslo is wet."}, *turns("Hi", "Think. Hello")]}
    more = {"context": "Oslo is wet.", "reasoning": "Think.", "answer": "Hello", "input": "Hi", "history": [["Hi"]]}
    assert noted(recognize, row | more) == {}
    assert noted(recognize, row | {"answer": "Bye"}) == {"unused": {"answer": 1}}
    with pytest.raises(ValueError, match="the column 'context'"):
        recognize(row | {"context": "Oslo is dry."})


def test_columns_say_which_of_two_prompts_is_meant() -> None:
    row = {"question": "Hi", "answer": "Hello", "prompt": "Bye"}
    assert recognize(row, {"question": "question"}) == chat("Hi", "Hello")
    assert noted(lambda row: recognize(row, {"question": "question"}), row) == {"unused": {"prompt": 1}}


# --- all other columns


def test_what_is_not_used_is_counted_once_a_row_and_what_is_harmless_is_not_warned_of() -> None:
    rows = [
        {"question": "1+1?", "answer": "2", "id": 7, "source": "s", "hint": "Count.", "user_id": "a"},
        {"question": "2+2?", "answer": "4", "id": 8, "source": "s", "hint": None},
        {"question": "3+3?", "answer": "6", "id": 9, "source": "s", "hint": "Count."},
    ]
    with collect_messages() as notes:
        for row in rows:
            with collect_row_messages():
                recognize(row)
    assert but_forms(notes) == {"unused": {"id": 3, "source": 3, "hint": 2, "user_id": 1}}
    assert notes["form"] == {"question + answer | question | answer": 3}
    assert notes.listed("unused", 3) == "id, source, hint (2 of 3 rows), user_id (1 of 3 rows)"
    (warning,) = Source("a.jsonl", name="sums").warnings(notes, 3, has_chat_template=True)
    assert warning.startswith("source sums: not used: hint (2 of 3 rows). If a column matters, say with `columns`")


def test_a_column_without_a_name_is_an_index_only_where_it_counts() -> None:
    row = {"question": "1+1?", "answer": "2"}
    assert noted(recognize, {**row, "": 3})["unused"] == noted(recognize, {**row, "": "3"})["unused"] == {"index": 1}
    notes = noted(recognize, {**row, "": "Count."})
    assert notes["unused"] == {"a column without a name": 1}
    (told,) = Source("a.csv").warnings(notes, 1, has_chat_template=True)
    assert "not used: a column without a name. If" in told


ASKED = "What is one and one?"


@pytest.mark.parametrize(
    ("read", "row", "told"),
    [
        (recognize, {"prompt": ASKED, "completion": f"{ASKED} Two."}, True),
        (recognize, {"prompt": ASKED, "completion": " Two."}, False),
        (recognize, {"prompt": "Hi", "completion": "Hi there"}, False),  # a greeting is no copy
        (pairs, {"prompt": ASKED, "chosen": f"{ASKED} Two.", "rejected": f"{ASKED} Three."}, True),
        (pairs, {"prompt": ASKED, "chosen": f"{ASKED} Two.", "rejected": " Three."}, False),
        (pairs, {"prompt": ASKED, "answers": [f"{ASKED} 2", f"{ASKED} 3"], "scores": [1, 0]}, True),
    ],
)
def test_answers_that_begin_with_the_prompt_are_told(read: Any, row: dict[str, Any], told: bool) -> None:
    warned = noted(read, row)["warning"]
    assert any("begins with all of the prompt, which so stands there twice" in text for text in warned) is told


def test_other_columns_of_a_prompt_are_kept_for_judges() -> None:
    notes = noted(recognize_prompt, {"question": "1+1?", "answer": "2", "solution": "1+1=2"})
    assert notes == {"kept": {"solution": 1}}
    assert Source("a.jsonl").warnings(notes, 1, has_chat_template=True) == []


def test_columns_beside_a_pair_are_told_from_those_of_its_form() -> None:
    row = {"prompt": "Hi", "chosen": turns("Hi", "a"), "rejected": turns("Hi", "b"), "prompt_id": "7", "messages": []}
    assert noted(pairs, row | {"score_chosen": 2, "score_rejected": 1, "margin": 1}) == {
        "unused": {"prompt_id": 1, "margin": 1}
    }


def test_a_name_that_columns_gives_away_is_not_used() -> None:
    row = {"prompt": "rendered", "completion": "b", "request": "a"}
    assert recognize(row, {"prompt": "request"}) == Completion("a", "b")
    assert noted(lambda row: recognize(row, {"prompt": "request"}), row) == {"unused": {"prompt": 1}}
    with pytest.raises(ValueError, match="columns maps prompt to 'request', but the row only has the keys prompt"):
        recognize({"prompt": "rendered", "completion": "b"}, {"prompt": "request"})


def test_a_column_that_only_some_rows_have_may_be_named() -> None:
    columns = {"input": "context"}
    assert recognize({"question": "a", "answer": "b"}, columns) == chat("a", "b")
    assert recognize({"question": "a", "answer": "b", "context": "c"}, columns) == chat("a\n\nc", "b")


def test_a_column_that_no_row_has_is_told_with_the_source() -> None:
    source = Source("a.jsonl", name="sums", columns={"question": "q", "system": "sys"})
    with collect_messages() as notes:
        source.examples(Row("a:1", {"q": "a", "answer": "b"}), lambda row, columns: [recognize(row, columns)])
    with pytest.raises(ValueError, match=r"^source sums: columns maps system to 'sys', which no row has"):
        source.require_columns(notes)


def test_ignored_columns_are_not_seen() -> None:
    source = Source("a.jsonl", ignore=["image", "prompt"])
    row = {"question": "a", "answer": "b", "image": "a.png", "prompt": "c"}
    with collect_messages() as notes:
        assert source.examples(Row("a:1", row), lambda row, columns: [recognize(row, columns)]) == [chat("a", "b")]
    assert but_forms(notes) == {}


def test_thousands_of_keys_and_odd_ones_make_one_short_line() -> None:
    with pytest.raises(ValueError, match=r"keys are a\\nb, k0, .* and 1981 more;") as raised:
        recognize({"a\nb": 1, **{f"k{n}": n for n in range(2000)}})
    assert len(str(raised.value)) < 1000


# --- spellings


def test_messages_as_json_text_are_messages() -> None:
    text = json.dumps(turns("Hi", "Hello"))
    for column in ("messages", "conversations"):
        assert recognize({column: text}) == chat("Hi", "Hello")
    assert recognize({"prompt": json.dumps(turns("Hi")), "completion": json.dumps(turns("Hi", "Hello")[1:])}) == chat(
        "Hi", "Hello", prompt_turns=1
    )
    sides = {"chosen": turns("Hi", "a"), "rejected": turns("Hi", "b")}
    assert pairs({side: json.dumps(value) for side, value in sides.items()}) == pairs(sides)
    twice = {side: json.dumps(json.dumps(value)) for side, value in sides.items()}
    assert pairs(twice) == pairs(sides)
    lone = {"prompt": "Hi", "chosen": json.dumps(turns("Hi", "a")[1]), "rejected": json.dumps(turns("Hi", "b")[1:])}
    assert pairs(lone) == pairs(sides)
    ranked = {"prompt": json.dumps(turns("Hi")), "answers": json.dumps(["b", "a"]), "scores": "[0, 1.5]"}
    assert pairs(ranked) == [pairs(sides)[0]._replace(values=(1.5, 0.0))]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("times", [1, 2, 4])
def test_json_text_behind_a_byte_order_mark_or_written_again_as_json_is_no_answer(
    times: int, indent: int | None
) -> None:
    sides = {"chosen": turns("Hé\n", "a"), "rejected": turns("Hé\n", "b")}
    said: dict[str, Any] = dict(sides)
    for number in range(times):
        said = {name: "\ufeff" * (number % 2) + json.dumps(value, indent=indent) for name, value in said.items()}
    assert pairs(said) == pairs(sides)
    assert pairs({name: f" \ufeff {value}" for name, value in said.items()}) == pairs(sides)
    ones = {name: json.dumps([json.dumps(turn) for turn in value]) for name, value in sides.items()}
    assert pairs(ones) == pairs(sides)


def test_messages_as_a_list_a_key_are_messages() -> None:
    columns = {"from": ["human", "gpt"], "value": ["Hi", "Hello"]}  # so `datasets` gives a sequence of objects
    assert recognize({"conversations": columns}) == chat("Hi", "Hello")


@pytest.mark.parametrize(
    "answer",
    [
        "[1, 2]",
        "[",
        '[{"role": "user", "content": "Hi"}] is how it begins.',
        '[{"role": "Neo", "actor": "Keanu Reeves"}]',
        '[{"from": "Oslo", "to": "Bergen"}]',
        '{"name": "add", "content": "1"}',
        '"[{quoted"',
        '"[{\\"value\\": 3}]"',
        '["{", "}"]',
        '"Hello"',
        "[]",
    ],
)
def test_a_text_that_begins_with_a_bracket_stays_text(answer: str) -> None:
    assert recognize({"question": "Hi", "answer": answer}) == chat("Hi", answer)
    assert pairs({"question": "Hi", "chosen": answer, "rejected": "b"})[0].answers[0] == chat(
        "Hi", answer, prompt_turns=1
    )


def test_messages_as_python_prints_them_are_refused() -> None:
    with pytest.raises(ValueError, match="chosen is a list of messages as Python prints it, not JSON"):
        pairs({"prompt": "Hi", "chosen": str(turns("Hi", "a")), "rejected": str(turns("Hi", "b"))})


@pytest.mark.parametrize("text", ["[" * 100_000, "[" * 500 + "]" * 500])
def test_json_text_that_is_nested_too_deeply_is_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"history is text that is broken JSON"):
        recognize({"instruction": "a", "output": "b", "history": text})


# --- dialogues as plain text (HH)

ASKED = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Really?\n\nAssistant:"


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        (ASKED, f"{ASKED} no"),  # an empty answer does not move the cut to the turn before
        (f"{ASKED} no", ASKED),
        (f"{ASKED} ", f"{ASKED} no"),
    ],
)
def test_dialogues_are_cut_at_the_last_assistant_turn_though_an_answer_is_empty(chosen: str, rejected: str) -> None:
    sides = Completion(ASKED, chosen.removeprefix(ASKED)), Completion(ASKED, rejected.removeprefix(ASKED))
    assert pairs({"chosen": chosen, "rejected": rejected}) == [pair_of(*sides)]


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        (f"{ASKED} I am\n\nHuman: ok\n\nAssistant: b", f"{ASKED} I was\n\nHuman: ok\n\nAssistant: b"),
        (f"{ASKED} yes\n\nHuman: thanks", f"{ASKED} no"),
        ("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: c\n\nAssistant: d"),
    ],
)
def test_dialogues_that_part_before_the_last_answer_are_left_out_and_counted(chosen: str, rejected: str) -> None:
    notes = noted(pairs, {"chosen": chosen, "rejected": rejected})
    assert pairs({"chosen": chosen, "rejected": rejected}) == []
    assert notes == {
        "left out": {"the dialogues differ before the last answer, so that a user's words would be trained": 1}
    }
    assert recognize_prompt({"chosen": chosen, "rejected": rejected}) is None


def test_a_users_words_behind_a_given_prompt_are_left_out_too() -> None:
    assert pairs({"prompt": ASKED, "chosen": " yes\n\nHuman: thanks", "rejected": " no"}) == []


@pytest.mark.parametrize(("chosen", "rejected"), [("", f"{ASKED} no"), (f"{ASKED} no", " "), ("", "")])
def test_a_side_without_any_text_is_left_out_and_counted(chosen: str, rejected: str) -> None:
    assert noted(pairs, {"chosen": chosen, "rejected": rejected}) == {"left out": {"an answer has no text": 1}}


def test_a_prompt_is_not_guessed_where_another_column_may_hold_it() -> None:
    row = {"query": "Name it.", "chosen": "The capital is Oslo.", "rejected": "The capital is Bergen."}
    with pytest.raises(
        ValueError, match=r"is the column 'query' the prompt\? Say so with `columns: {question: query}`, or"
    ):
        pairs(row)
    assert pairs(row, {"question": "query"})[0].answers[0] == chat("Name it.", "The capital is Oslo.", prompt_turns=1)


def test_a_prompt_that_is_guessed_from_shared_words_is_told() -> None:
    notes = noted(pairs, {"chosen": "The sky is blue.", "rejected": "The sky is green."})
    assert notes["warning"].total() == 1


# --- plain text


def test_format_chat_makes_turns_of_plain_prompts_and_text_keeps_them() -> None:
    def read(source: Source, row: dict[str, Any], reader: Any) -> Any:
        (made,) = source.examples(Row("a:1", row), reader)
        return made

    def prompted(row: Any, columns: Any) -> list[Any]:
        return [recognize_prompt(row, columns)]

    def paired(row: Any, columns: Any) -> list[PromptAnswers]:
        return recognize_preferences(row, columns, BestWorst())

    def documents(row: Any, columns: Any) -> list[Any]:
        return [recognize(row, columns)]

    as_chat, as_text = Source("a", format="chat"), Source("a", format="text")
    pair = {"prompt": "Hi", "chosen": "a", "rejected": "b"}
    both = pair_of(chat("Hi", "a", prompt_turns=1), chat("Hi", "b", prompt_turns=1))
    assert read(as_chat, pair, paired) == both
    assert read(as_text, pair, paired) == pair_of(Completion("Hi", "a"), Completion("Hi", "b"))
    assert read(as_chat, {"prompt": "Hi"}, prompted) == Conversation((Message("user", "Hi"),), 1)
    assert read(as_chat, {"prompt": "Hi", "completion": "a"}, documents) == chat("Hi", "a")
    assert read(as_chat, {"prompt": turns("Hi"), "chosen": "a", "rejected": "b"}, paired) == both
    renamed = Source("a", format="chat", columns={"prompt": "query"})
    assert read(renamed, {"query": "Hi", "chosen": "a", "rejected": "b"}, paired) == both
    system = read(as_chat, pair | {"system": "Be kind."}, paired).answers[0]
    assert [message.content for message in system.messages] == ["Be kind.", "Hi", "a"]
    with pytest.raises(ValueError, match="`format: chat` is set, but this row is plain text"):
        read(as_chat, {"chosen": "The sky is blue.", "rejected": "The sky is green."}, paired)


def test_plain_text_under_a_chat_template_is_told_once_unless_it_is_chosen() -> None:
    def notes_of(source: Source) -> RowMessages:
        with collect_messages() as notes:
            source.examples(
                Row("a:1", {"prompt": "a", "completion": "b"}), lambda row, columns: [recognize(row, columns)]
            )
        return notes

    source = Source("a.jsonl", name="sums")
    (told,) = source.warnings(notes_of(source), 1, has_chat_template=True)
    assert told.startswith(
        "source sums: 1 of 1 rows are plain text, which is read without the tokenizer's chat template"
    )
    assert "`format: chat`" in told
    assert source.warnings(notes_of(source), 1, has_chat_template=False) == []
    chosen = Source("a.jsonl", format="text")
    assert chosen.warnings(notes_of(chosen), 1, has_chat_template=True) == []


# --- a prompt in a column of another name


CAPITALS = {"chosen": "The cap is A.", "rejected": "The cap is B."}


@pytest.mark.parametrize(
    "name", ["dialogue", "turns", "dialog", "conversation", "chat", "prompt_messages", "chat_history"]
)
def test_messages_beside_a_pair_of_texts_are_no_reason_to_guess_the_prompt(name: str) -> None:
    for read in (pairs, recognize_prompt):
        for value in (turns("q q"), json.dumps(turns("q q"))):
            with pytest.raises(ValueError, match=rf"^is the column '{name}' .* `columns: {{messages: {name}}}`, or"):
                read(CAPITALS | {name: value})
        with pytest.raises(ValueError, match=f"^is the column '{name}' the prompt"):
            read(CAPITALS | {name: {"user": "q q"}})
    (pair,) = pairs(CAPITALS | {name: turns("q q")}, {"messages": name})
    assert pair.answers[0] == chat("q q", "The cap is A.", prompt_turns=1)


def test_an_article_in_the_column_source_may_be_the_prompt_and_a_name_is_not() -> None:
    with pytest.raises(ValueError, match=r"^is the column 'source' the prompt\?"):
        pairs(CAPITALS | {"source": "It rained in Oslo. " * 10})
    (pair,) = pairs(CAPITALS | {"source": "wiki", "tags": ["a", "b"], "path": "a/" * 99, "lengths": [1, 2]})
    assert pair.answers[0] == Completion("The cap is", " A.")


def test_columns_that_are_refused_by_name_are_not_asked_about() -> None:
    with pytest.raises(ValueError, match=r"^the column 'images' holds an image"):
        pairs(CAPITALS | {"images": ["a.png"]})
