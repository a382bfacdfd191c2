"""A conversation: what the model is given, what streams, what is remembered, and what a terminal gets to see."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch

from lion_lightning.data.formats.turns import Message
from lion_lightning.models.generation.rollout_policy import RolloutPolicy
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.printing import harmless
from lion_lightning.tools.chat.conversation import Chat, load_served, require_model
from lion_lightning.tools.chat.main import main
from tests import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tiny.tokenizer_folder(tmp_path_factory.mktemp("model"))
    RolloutPolicy(tiny.policy(), TokenizerSpec(str(made)).load()).write(made)
    return made


@pytest.fixture
def served(folder: Path) -> RolloutPolicy:
    return load_served(str(folder))


def greedy(served: RolloutPolicy, text: str, most: int) -> str:
    """The definition: the most probable token, again and again, with no cache."""
    ids = served.tokenizer.encode(text, add_special_tokens=False)
    start = len(ids)
    while len(ids) < start + most and (len(ids) == start or ids[-1] not in served.end_ids):
        ids.append(int(served.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return str(served.tokenizer.decode(ids[start:], skip_special_tokens=True)).strip()


def test_the_second_answer_is_that_to_the_whole_conversation(served: RolloutPolicy) -> None:
    chat = Chat(served, system="w9", temperature=0, max_new_tokens=4)
    first = chat.say("w3 w4", lambda piece: None).text
    said = "<|im_start|>{}\n{}<|im_end|>\n".format
    asked = said("system", "w9") + said("user", "w3 w4") + "<|im_start|>assistant\n"
    assert first == greedy(served, asked, 4)
    second = chat.say("w5", lambda piece: None).text
    assert second == greedy(served, asked + f"{first}<|im_end|>\n{said('user', 'w5')}<|im_start|>assistant\n", 4)
    assert [turn.role for turn in chat.turns] == ["system", "user", "assistant", "user", "assistant"]


def test_an_answer_comes_word_by_word(served: RolloutPolicy) -> None:
    pieces: list[str] = []
    answer = Chat(served, temperature=0, max_new_tokens=5).say("w3", pieces.append)
    assert "".join(pieces).strip() == answer.text
    assert len([piece for piece in pieces if piece]) == len(answer.text.split()) == 5
    assert answer.finish_reason == "length"


def test_drawn_answers_differ_from_one_another(served: RolloutPolicy) -> None:
    said = {Chat(served, temperature=5.0, max_new_tokens=8).say("w3", lambda piece: None).text for _ in range(3)}
    assert len(said) == 3


def test_undo_takes_one_turn_back_and_reset_all_but_the_system_turn(served: RolloutPolicy) -> None:
    chat = Chat(served, system="w9", temperature=0, max_new_tokens=2)
    for question in ("w3", "w4"):
        chat.say(question, lambda piece: None)
    assert chat.undo() == "w4"
    assert [turn.content for turn in chat.turns[:2]] == ["w9", "w3"]
    assert len(chat.turns) == 3
    chat.reset()
    assert chat.turns == [Message("system", "w9")]
    assert chat.undo() is None


class CtrlC:
    """Takes so many pieces, then is Ctrl-C, once."""

    def __init__(self, pieces: int) -> None:
        self.left = pieces

    def __call__(self, piece: str) -> None:
        self.left -= 1
        if self.left == -1:
            raise KeyboardInterrupt


def test_ctrl_c_keeps_what_was_said_and_the_conversation_goes_on(served: RolloutPolicy) -> None:
    whole = Chat(served, temperature=0, max_new_tokens=6).say("w3", lambda piece: None).text
    chat = Chat(served, temperature=0, max_new_tokens=6)
    answer = chat.say("w3", CtrlC(2))
    assert answer.finish_reason == "interrupted"
    assert answer.text
    assert answer.text != whole
    assert whole.startswith(answer.text)
    assert chat.turns[-1] == Message("assistant", answer.text)
    assert chat.say("w4", lambda piece: None).text


def test_a_conversation_without_room_gets_a_line_and_stays_as_it_was(served: RolloutPolicy) -> None:
    chat = Chat(served, temperature=0, max_new_tokens=40)
    long = " ".join(["w3"] * 50)  # with the template's words: under the model's 64 positions
    answer = chat.say(long, lambda piece: None)
    assert answer.finish_reason == "length"
    assert 0 < len(answer.text.split()) < 14
    before = list(chat.turns)
    with pytest.raises(ValueError, match=r"the model only 64 positions.*/undo.*/reset"):
        chat.say("w4", lambda piece: None)
    assert chat.turns == before


def test_text_cannot_command_the_terminal() -> None:
    assert harmless("a\x1b[2Jb\x9b1mc\rd\u202ee") == "a\ufffd[2Jb\ufffd1mc\ufffdd\ufffde"


def test_ordinary_text_of_any_language_stays() -> None:
    persian, emoji = "\u0645\u06cc\u200c\u062e", "👩\u200d🔬"  # both hold a joiner
    for text in ("def f():\n\treturn 1\n", "東京\u3000です", "10\u202f000\u00a0€", persian, emoji):
        assert harmless(text) == text


def run(monkeypatch: Any, capsys: Any, folder: Path, lines: str, *options: str) -> Any:
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    main([str(folder), "--temperature", "0", "--max-new-tokens", "3", *options])
    return capsys.readouterr()


def test_piped_lines_are_answered_and_nothing_else_is_on_the_output(
    monkeypatch: Any, capsys: Any, folder: Path, served: RolloutPolicy
) -> None:
    chat = Chat(served, temperature=0, max_new_tokens=3)
    expected = [chat.say(line, lambda piece: None).text for line in ("w3", "w4")]
    shown = run(monkeypatch, capsys, folder, "w3\n\nw4\n")
    assert shown.out.splitlines() == expected
    again = run(monkeypatch, capsys, folder, "w3\n/reset\nw3\n/quit\nw5\n")
    assert again.out.splitlines() == [expected[0]] * 2
    assert "a new conversation" in again.err


def test_commands_of_the_terminal(monkeypatch: Any, capsys: Any, folder: Path) -> None:
    shown = run(monkeypatch, capsys, folder, "/undo\nw3\n/undo\n/udno\n")
    assert "nothing to undo" in shown.err
    assert "removed: w3" in shown.err
    assert "unknown command /udno; /undo removes" in shown.err
    assert len(shown.out.splitlines()) == 1


def test_a_long_piped_line_gets_its_reason_and_the_next_one_an_answer(
    monkeypatch: Any, capsys: Any, folder: Path
) -> None:
    shown = run(monkeypatch, capsys, folder, " ".join(["w3"] * 80) + "\nw4\n")
    assert "64 positions" in shown.err
    assert len(shown.out.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temperature", "-1"], "temperature is -1"),
        (["--max-new-tokens", "0"], "max_new_tokens is 0"),
    ],
)
def test_settings_out_of_range(folder: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        main([str(folder), *arguments])


def test_what_is_no_model_to_talk_with_gets_one_line(tmp_path: Path, folder: Path) -> None:
    for path, message in (
        (tmp_path / "nowhere", "does not exist"),
        (tmp_path, "no config.json"),
        (folder / "config.json", "is a file; give a folder"),
    ):
        with pytest.raises(ValueError, match=message):
            load_served(str(path))


def test_a_folder_without_weights_or_without_a_template_gets_one_line(tmp_path: Path, folder: Path) -> None:
    for source in folder.iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="has no chat template"):
        load_served(str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"")  # pickled weights are never read
    with pytest.raises(ValueError, match="has no safetensors weights"):
        load_served(str(tmp_path))


def test_a_template_that_refuses_a_system_turn_is_found_out_before_the_first_question(served: RolloutPolicy) -> None:
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    served.tokenizer.chat_template = refusal + "{{ messages[0].content }}"
    with pytest.raises(ValueError, match=r"the chat template cannot render .*: no system role"):
        Chat(served, system="w9")


def test_the_folder_of_a_run_names_its_models(tmp_path: Path) -> None:
    for stage in ("dpo", "sft"):
        (tmp_path / stage / "export").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"is the folder of a run; give a model of it: .*/dpo/export, .*/sft/export$"):
        require_model(str(tmp_path))
    with pytest.raises(ValueError, match=r"is the folder of a run; give a model of it: \S*/sft/export$"):
        require_model(str(tmp_path / "sft"))
