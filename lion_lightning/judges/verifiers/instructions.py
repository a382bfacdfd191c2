"""A verifier of instructions that a row names: those of IFEval, by its names or by those of TÜLU 3's RLVR data."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lion_lightning.judges.verifiers.columns import reference_answer
from lion_lightning.judges.verifiers.constraints import counting, form, layout
from lion_lightning.types import Prompt


class Instruction(NamedTuple):
    """How a row names the arguments of a constraint.

    Attributes:
        check: The constraint: answer and arguments to whether the answer holds it.
        names: The row's name of each argument, by the constraint's.
        fixed: Arguments that the row does not give.
    """

    check: Callable[..., bool]
    names: Mapping[str, str] = {}
    fixed: Mapping[str, Any] = {}


def _counted(check: Callable[..., bool], relation: str, number: str, **names: str) -> Instruction:
    return Instruction(check, {"number": number, "relation": relation, **names})


def _exactly(check: Callable[..., bool], **names: str) -> Instruction:
    return Instruction(check, {"number": "N", **names}, {"relation": "exactly"})


IFEVAL = {
    "keywords:existence": Instruction(counting.has_keywords, {"keywords": "keywords"}),
    "keywords:forbidden_words": Instruction(counting.has_no_keywords, {"keywords": "forbidden_words"}),
    "keywords:frequency": _counted(counting.keyword_frequency, "relation", "frequency", keyword="keyword"),
    "keywords:letter_frequency": _counted(counting.letter_frequency, "let_relation", "let_frequency", letter="letter"),
    "length_constraints:number_words": _counted(counting.number_of_words, "relation", "num_words"),
    "length_constraints:number_sentences": _counted(counting.number_of_sentences, "relation", "num_sentences"),
    "length_constraints:number_paragraphs": Instruction(layout.divided_paragraphs, {"number": "num_paragraphs"}),
    "length_constraints:nth_paragraph_first_word": Instruction(
        layout.nth_paragraph_begins,
        {"number": "num_paragraphs", "place": "nth_paragraph", "first_word": "first_word"},
    ),
    "detectable_content:postscript": Instruction(layout.postscript, {"marker": "postscript_marker"}),
    "detectable_content:number_placeholders": Instruction(layout.placeholders, {"number": "num_placeholders"}),
    "detectable_format:number_bullet_lists": Instruction(layout.bullets, {"number": "num_bullets"}),
    "detectable_format:number_highlighted_sections": Instruction(layout.highlights, {"number": "num_highlights"}),
    "detectable_format:multiple_sections": Instruction(
        layout.sections, {"number": "num_sections", "splitter": "section_spliter"}
    ),
    "detectable_format:title": Instruction(layout.title),
    "detectable_format:json_format": Instruction(form.is_json),
    "detectable_format:constrained_response": Instruction(
        form.one_option, fixed={"options": ["My answer is yes.", "My answer is no.", "My answer is maybe."]}
    ),
    "combination:two_responses": Instruction(layout.two_responses),
    "combination:repeat_prompt": Instruction(form.repeats_prompt, {"text": "prompt_to_repeat"}),
    "startend:end_checker": Instruction(form.ends_with, {"phrase": "end_phrase"}),
    "startend:quotation": Instruction(form.quoted),
    "change_case:capital_word_frequency": _counted(counting.capital_words, "capital_relation", "capital_frequency"),
    "change_case:english_capital": Instruction(form.all_capitals),
    "change_case:english_lowercase": Instruction(form.all_small),
    "punctuation:no_comma": Instruction(form.no_commas),
}
"""IFEval's instructions, which its rows name in ``instruction_id_list`` with arguments in ``kwargs``."""

TULU = {
    "verify_keywords": Instruction(counting.has_keywords, {"keywords": "keyword_list"}),
    "validate_forbidden_words": Instruction(counting.has_no_keywords, {"keywords": "forbidden_words"}),
    "verify_keyword_frequency": _exactly(counting.keyword_frequency, keyword="word"),
    "verify_letter_frequency": _exactly(counting.letter_frequency, letter="letter"),
    "validate_word_constraint": _counted(counting.number_of_words, "quantifier", "N"),
    "verify_sentence_constraint": _counted(counting.number_of_sentences, "quantifier", "N"),
    "verify_paragraph_count": Instruction(layout.divided_paragraphs, {"number": "N"}),
    "validate_paragraphs": Instruction(
        layout.nth_paragraph_begins, {"number": "N", "place": "i", "first_word": "first_word"}
    ),
    "verify_postscript": Instruction(layout.postscript, {"marker": "postscript_marker"}),
    "validate_placeholders": Instruction(layout.placeholders, {"number": "N"}),
    "verify_bullet_points": Instruction(layout.bullets, {"number": "N"}),
    "validate_highlighted_sections": Instruction(layout.highlights, {"number": "N"}),
    "validate_sections": Instruction(layout.sections, {"number": "N", "splitter": "section_splitter"}),
    "validate_title": Instruction(layout.title),
    "validate_json_format": Instruction(form.is_json),
    "validate_choice": Instruction(form.one_option, {"options": "options"}),
    "validate_two_responses": Instruction(layout.two_responses),
    "validate_repeat_prompt": Instruction(form.repeats_prompt, {"text": "original_prompt"}),
    "validate_end": Instruction(form.ends_with, {"phrase": "end_phrase"}),
    "validate_quotation": Instruction(form.quoted),
    "validate_frequency_capital_words": _counted(counting.capital_words, "quantifier", "N"),
    "validate_uppercase": Instruction(form.all_capitals),
    "validate_lowercase": Instruction(form.all_small),
    "validate_no_commas": Instruction(form.no_commas),
}
"""The same ones as TÜLU 3's RLVR data names them, in ``func_name`` of a mapping that has the arguments too."""


class Instructions:
    """Checks that an answer follows all instructions that its row names, or the same ones in each row.

    Rows with ``instruction_id_list`` and ``kwargs`` are IFEval's. Others have, in one column, a mapping with
    ``func_name`` and arguments, or a list of such, as data or as JSON; arguments that are null are not given.

    The language of an answer is not checked, since that takes a model: rows that name ``language:response_language``
    or ``validate_response_language`` are refused unless ``more`` has a function for it.

    Args:
        column: Name of that column.
        more: Functions of your own by the name of their instruction, in a config by their import paths. Each is called
            with the answer and, by name, the row's arguments.
        always: Names of instructions with their arguments, for all answers alike; then the rows name none.
    """

    def __init__(
        self,
        column: str = "ground_truth",
        more: dict[str, Callable[..., bool]] | None = None,
        always: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        self.column, self.more, self.always = column, more or {}, always

    def identity(self) -> dict[str, Any]:
        """Settings that determine the result."""
        more = {name: check.__qualname__ for name, check in self.more.items()}
        return {"column": self.column, "more": more, "always": self.always}

    def __call__(self, prompt: Prompt, answer: str) -> bool:
        """Return whether the answer follows all of them; an empty one does not.

        Raises:
            ValueError: The row names none, an unknown one, or gives wrong arguments.
        """
        follows = [self._follows(answer, name, given) for name, given in self._read(prompt)]
        return bool(answer.strip()) and all(follows)

    def _read(self, prompt: Prompt) -> list[tuple[str, dict[str, Any]]]:
        """Names and arguments of the row's instructions."""
        names, given = self._columns(prompt)
        if not isinstance(names, list) or not isinstance(given, list) or not 0 < len(names) == len(given):
            raise ValueError(f"{names!r:.60} with {given!r:.60} names no instructions; give each its arguments")
        read = []
        for name, arguments in zip(names, given, strict=True):
            if not isinstance(name, str) or not isinstance(arguments, Mapping | None):
                raise ValueError(f"an instruction is {name!r:.60} with {arguments!r:.60}; give its name and a mapping")
            # A copy: the row, with its func_name, serves the next answer too.
            kept = {key: one for key, one in (arguments or {}).items() if one is not None and key != "func_name"}
            read.append((name, kept))
        return read

    def _columns(self, prompt: Prompt) -> tuple[Any, Any]:
        """Names of the row's instructions, and the mapping with the arguments of each."""
        if self.always is not None:
            return list(self.always), list(self.always.values())
        if prompt.row.get("instruction_id_list") is not None:
            return _loaded(prompt, "instruction_id_list"), _loaded(prompt, "kwargs")
        label = _loaded(prompt, self.column)
        given = label if isinstance(label, list) else [label]
        return [one.get("func_name") if isinstance(one, Mapping) else None for one in given], given

    def _follows(self, answer: str, name: str, given: dict[str, Any]) -> bool:
        if name in self.more:
            return bool(self.more[name](answer, **given))
        instruction = IFEVAL.get(name) or TULU.get(name)
        if instruction is None:
            known = ", ".join([*self.more, *(IFEVAL if ":" in name else TULU)])
            raise ValueError(f"the instruction {name!r} is unknown; known are {known}; give `more` a function for it")
        # An argument too many is as wrong as one too few: the row then means another instruction.
        wanted = set(instruction.names.values())
        if wanted != given.keys():
            raise ValueError(f"{name} needs {sorted(wanted) or 'no arguments'}, and the row gives {sorted(given)}")
        arguments = {own: _argument(own, key, given[key]) for own, key in instruction.names.items()}
        return instruction.check(answer, **arguments, **instruction.fixed)


def _loaded(prompt: Prompt, column: str) -> Any:
    """A column as data, whether the row has it so or as JSON."""
    value = reference_answer(prompt, column)
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise ValueError(f"column {column!r} is not JSON ({error})") from error


def _argument(own: str, name: str, value: Any) -> Any:
    """An argument of a constraint in its type."""
    if own in ("number", "place"):
        whole_number = isinstance(value, float) and value.is_integer()  # as a table with gaps stores it
        if not (whole_number or type(value) is int) or value < 0:
            raise ValueError(f"{name} is {value!r}; it is an integer, 0 or more")
        return int(value)
    texts = value if own in ("keywords", "options") else [value]
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        kind = "a text" if texts is not value else "a list of texts"
        raise ValueError(f"{name} is {value!r}; it is {kind}, and none is empty")
    return value
