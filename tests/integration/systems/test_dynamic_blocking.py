"""Dynamic blocking (examples/nonfree/): what is blocked, when, and for whom; and nothing of it is in the package."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerFast
from typing_extensions import override

from examples.nonfree.dynamic_blocking import Blocking, BlockingSampler, Corruption, bert_ibleu, demo, rank, self_bleu
from examples.nonfree.dynamic_blocking.blocking import START, Active, Bigram
from examples.nonfree.dynamic_blocking.corruption import restore
from examples.nonfree.dynamic_blocking.sampler import BlockedSuccessors
from lion_lightning.cli import main
from lion_lightning.data.formats.sft import recognize
from lion_lightning.models.generation.rollout_policy import RolloutPolicy
from lion_lightning.sampling import SamplingSettings, ServerSampler, TransformersSampler, VLLMSampler
from lion_lightning.tools.demo import make_tokenizer
from lion_lightning.types import Answer, Prompt
from tests import tiny
from tests.unit.data.letters import byte_tokenizer

ROOT = Path(__file__).parents[3]
SOURCE = "I like apples and oranges ."
CASES = "I like Like LIKE apples Apples APPLES and And AND oranges Oranges ORANGES"
WORDS = ["<unk>", "<end>", ".", "a", "b", "c", *CASES.split(" ")]
TEMPLATE = "{% for m in messages %}{{ m.content + ' <end> ' }}{% endfor %}"
EVERYTHING = Blocking(1.0, keep=())


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """A token a word."""
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"eos_token": "<end>", "pad_token": "<end>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, chat_template=TEMPLATE, **special)  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module")
def subwords() -> PreTrainedTokenizerFast:
    """Byte-level BPE with few merges, so that words have several tokens, and some begin with a lone space."""
    merges = [("\u0120", letter) for letter in "dlgio2G"] + [("\u0120l", "i"), ("\u0120g", "r")]
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    made = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>")  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module")
def policy(tokenizer: PreTrainedTokenizerFast) -> RolloutPolicy:
    return RolloutPolicy(tiny.policy(vocab_size=len(WORDS)), tokenizer)


def token(word: str) -> int:
    return WORDS.index(word) if word != "START" else START


def named(active: Active) -> dict[str, set[str]]:
    """A dictionary in words."""
    return {
        "START" if key == START else WORDS[key]: {WORDS[number] for number in blocked}
        for key, blocked in active.items()
    }


def blocked_after(active: Active, said: str, length: int = 3) -> set[str]:
    """Words that cannot come next, behind a prompt of some tokens."""
    ids = torch.tensor([[token("and")] * length + [token(word) for word in said.split()]])
    scores = BlockedSuccessors([active], length)(ids, torch.zeros(1, len(WORDS)))
    return {WORDS[number] for number in scores[0].isneginf().nonzero().flatten()}


def reachable(active: Active, sentence: str) -> bool:
    """Whether no word of a sentence is impossible when its turn comes."""
    words = sentence.split()
    return not any(word in blocked_after(active, " ".join(words[:place])) for place, word in enumerate(words))


def prompt(text: str, tokenizer: Any, **more: Any) -> Prompt:
    return Prompt(text, tuple(tokenizer(text).input_ids), where="f:1", **more)


def sampled(policy: RolloutPolicy, sampler: TransformersSampler, prompts: Sequence[Prompt], n: int = 1) -> Any:
    sampler.open(policy)
    try:
        return sampler.sample(prompts, n, 0)
    finally:
        sampler.close()


def test_every_bigram_of_the_source_is_an_entry_with_its_successor_in_all_cases(tokenizer: Any) -> None:
    dictionary = EVERYTHING.dictionary(SOURCE, tokenizer)
    words = ["START", *SOURCE.split()]
    assert [*dictionary.entries] == [Bigram(token(a), token(b)) for a, b in pairwise(words)]
    assert named(dictionary.draw(0)) == {
        "START": {"I"},
        "I": {"like", "Like", "LIKE"},
        "like": {"apples", "Apples", "APPLES"},
        "apples": {"and", "And", "AND"},
        "and": {"oranges", "Oranges", "ORANGES"},
        "oranges": {"."},
    }
    assert named(Blocking(1.0, (), variants=False).dictionary(SOURCE, tokenizer).draw(0))["and"] == {"oranges"}
    # "I" and "and" are closed-class words: they are not blocked, and what follows them is
    assert [*named(Blocking(1.0).dictionary(SOURCE, tokenizer).draw(0))] == ["I", "like", "and", "oranges"]


def test_a_successor_is_impossible_for_one_step(tokenizer: Any) -> None:
    active = EVERYTHING.dictionary(SOURCE, tokenizer).draw(0)
    assert blocked_after(active, "I like apples and") == {"oranges", "Oranges", "ORANGES"}
    assert blocked_after(active, "I like apples and apples") == {"and", "And", "AND"}  # oranges may come now
    assert blocked_after(active, "c") == set()


def test_before_the_first_word_the_prompt_says_nothing(tokenizer: Any) -> None:
    active = EVERYTHING.dictionary(SOURCE, tokenizer).draw(0)
    assert blocked_after(active, "") == {"I"}  # the prompt ends in "and"


def test_an_active_dictionary_blocks_the_source_and_not_its_words_elsewhere() -> None:
    active = {token("and"): frozenset({token("oranges")}), token("like"): frozenset({token("apples")})}
    assert not reachable(active, SOURCE)
    assert reachable(active, "I like oranges and apples .")  # with oranges forbidden throughout it would not be
    assert reachable({}, SOURCE)


def test_a_repeated_token_has_all_of_its_successors(tokenizer: Any) -> None:
    assert named(EVERYTHING.dictionary("a b a c", tokenizer).draw(0))["a"] == {"b", "c"}


def test_entries_are_drawn_each_on_its_own(tokenizer: Any) -> None:
    dictionary = Blocking(0.5, keep=()).dictionary(SOURCE, tokenizer)
    draws = [dictionary.draw(seed) for seed in range(4000)]
    assert draws[7] == dictionary.draw(7)
    kept = Counter(key for active in draws for key in active)
    spread = math.sqrt(4000 * 0.25)
    assert all(abs(kept[bigram.token] - 2000) < 4.5 * spread for bigram in dictionary.entries)
    # the source stays reachable where none of six entries is active
    empty = sum(not active for active in draws)
    assert abs(empty - 4000 / 64) < 4.5 * math.sqrt(4000 / 64 * (1 - 1 / 64))
    assert all(not Blocking(0.0, ()).dictionary(SOURCE, tokenizer).draw(seed) for seed in range(9))


def pieces(tokens: Iterable[int], tokenizer: Any) -> list[str]:
    return [tokenizer.decode([number]) for number in tokens]


def test_only_the_first_token_of_a_word_is_blocked(subwords: Any) -> None:
    dictionary = Blocking(1.0, keep=(), variants=False).dictionary("I don't like grapes in 2024, oranges", subwords)
    # neither the rest of a word, nor 't, nor digits within a number
    begun = pieces((bigram.successor for bigram in dictionary.entries), subwords)
    assert begun == ["I", " d", " li", " gr", " i", " 2", ",", " o"]
    assert pieces([bigram.token for bigram in dictionary.entries][1:], subwords) == [*"Itesn4,"]


def test_other_cases_are_blocked_by_their_own_first_token_unless_it_says_nothing(tokenizer: Any, subwords: Any) -> None:
    *_, like, grapes = Blocking(1.0).dictionary("I like grapes", subwords).entries.values()
    assert {*pieces(grapes, subwords)} == {" gr", " G"}
    assert pieces(like, subwords) == [" li"]  # " Like" begins with a lone space, as any word may
    # "C" is no word of the vocabulary
    assert named(EVERYTHING.dictionary("a c", tokenizer).draw(0))["a"] == {"c"}


def test_each_answer_has_its_own_dictionary_of_its_prompts_source(policy: RolloutPolicy, tokenizer: Any) -> None:
    sampler = BlockingSampler(blocking=Blocking(0.5, keep=()))
    sampler.open(policy)
    [blocked] = sampler.processors([prompt(SOURCE, tokenizer), prompt("a b a c a a", tokenizer)], 50, 6)
    sampler.close()
    assert isinstance(blocked, BlockedSuccessors)
    assert len(blocked.active) == 100
    assert len({str(active) for active in blocked.active[:50]}) > 30  # of 64
    assert all({*active} <= {START, *map(token, SOURCE.split())} for active in blocked.active[:50])
    assert all({*active} <= {START, token("a"), token("b"), token("c")} for active in blocked.active[50:])


def test_rows_are_dealt_to_dictionaries_evenly_with_beams_too() -> None:
    one, two = ({token("a"): frozenset({token(word)})} for word in "bc")
    ids = torch.full((8, 2), token("a"))
    scores = BlockedSuccessors([one, two], 1)(ids, torch.zeros(8, len(WORDS)))
    assert [WORDS[int(row.argmin())] for row in scores] == [*"bbbbcccc"]


def test_a_beam_search_under_a_dictionary_never_says_a_bigram_of_the_source(
    policy: RolloutPolicy, tokenizer: Any
) -> None:
    asked = prompt(SOURCE, tokenizer)
    processor = BlockedSuccessors([EVERYTHING.dictionary(SOURCE, tokenizer).draw(0)], 6, policy.end_ids)
    ids = torch.tensor([asked.input_ids])
    with policy.generating():
        beams = policy.model.generate(
            ids, num_beams=4, num_return_sequences=2, do_sample=False, max_new_tokens=8, logits_processor=[processor]
        )
    assert beams.shape[0] == 2  # the paper's search: 4 beams, 2 kept
    source = {*pairwise(SOURCE.split())}
    for row in beams[:, 6:].tolist():
        said = [WORDS[number] for number in row]
        assert not source & {*pairwise(said)}


def test_the_end_is_never_blocked() -> None:
    active = {token("a"): frozenset({token("b"), token("c")})}
    scores = BlockedSuccessors([active], 0, [token("c")])(torch.tensor([[token("a")]]), torch.zeros(1, len(WORDS)))
    assert scores[0].isneginf().nonzero().flatten().tolist() == [token("b")]


class RecordingSampler(BlockingSampler):
    """Keeps the rows of each step, and the scores after blocking."""

    @override
    def processors(self, prompts: Sequence[Prompt], n: int, start: int) -> list[LogitsProcessor]:
        self.seen: list[tuple[Tensor, Tensor]] = []
        return [*super().processors(prompts, n, start), self.record]  # type: ignore[list-item]

    def record(self, ids: Tensor, scores: Tensor) -> Tensor:
        self.seen.append((ids.clone(), scores.clone()))
        return scores


def test_padded_answers_are_drawn_from_the_models_distribution_without_the_blocked(
    policy: RolloutPolicy, tokenizer: Any
) -> None:
    texts = [SOURCE, "b c", "oranges and apples"]
    prompts = [prompt(text, tokenizer) for text in texts]
    sampler = RecordingSampler(SamplingSettings(temperature=1.0, max_new_tokens=6), blocking=EVERYTHING)
    sampled(policy, sampler, prompts, 2)
    assert len(sampler.seen) > 2
    for ids, scores in sampler.seen:
        for row, (said, found) in enumerate(zip(ids[:, 6:].tolist(), scores, strict=True)):
            if token("<end>") in said:
                continue
            # longest prompt first, two answers to each
            words = texts[(0, 2, 1)[row // 2]].split()
            last = WORDS[said[-1]] if said else "START"
            forbidden = {b for a, b in zip(["START", *words], words, strict=False) if a == last}
            forbidden |= {form for word in forbidden for form in (word.capitalize(), word.upper())}
            with policy.generating():
                alone = policy.model(torch.tensor([[*map(token, words), *said]])).logits[0, -1]
            numbers = [token(word) for word in forbidden if word in WORDS]
            assert found[numbers].isneginf().all()
            alone[numbers] = -torch.inf
            torch.testing.assert_close(found.softmax(-1), alone.softmax(-1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_blocking_nothing_gives_the_answers_of_the_plain_sampler(
    policy: RolloutPolicy, tokenizer: Any, temperature: float
) -> None:
    prompts = [prompt(SOURCE, tokenizer), prompt("a b", tokenizer)]
    settings, n = SamplingSettings(temperature=temperature, max_new_tokens=6), 3 if temperature else 1
    plain = sampled(policy, TransformersSampler(settings), prompts, n)
    assert sampled(policy, BlockingSampler(settings, blocking=Blocking(0.0)), prompts, n) == plain


def test_greedy_answers_to_a_prompt_differ_by_their_dictionaries(policy: RolloutPolicy, tokenizer: Any) -> None:
    prompts = [prompt(SOURCE, tokenizer), prompt("a b a c", tokenizer)]
    sampler = BlockingSampler(SamplingSettings(temperature=0.0, max_new_tokens=6), 3, Blocking(0.5, keep=()))
    answers: list[list[Answer]] = sampled(policy, sampler, prompts, 8)
    assert answers == sampled(policy, sampler, prompts, 8)
    assert [len(group) for group in answers] == [8, 8]
    assert all(answer.token_ids for group in answers for answer in group)


def test_the_source_may_be_a_column_and_answers_may_begin_with_a_space(subwords: Any) -> None:
    policy = RolloutPolicy(tiny.policy(vocab_size=len(subwords)), subwords)
    sampler = BlockingSampler(blocking=EVERYTHING, column="text", lead=" ")
    sampler.open(policy)
    [blocked] = sampler.processors([prompt("Say it anew:", subwords, row={"text": "like apples"})], 1, 9)
    assert isinstance(blocked, BlockedSuccessors)
    assert subwords(" like").input_ids[0] in blocked.active[0][START]
    with pytest.raises(ValueError, match="f:1: no text in column 'text'; the row has other"):
        sampler.processors([prompt("Say it anew:", subwords, row={"other": "like apples"})], 1, 9)
    sampler.close()


@pytest.mark.parametrize("p", [-0.1, 1.5, float("nan")])
def test_a_p_that_is_no_probability_is_refused(p: float) -> None:
    with pytest.raises(ValueError, match=r"blocking.p is .*; give a probability, from 0 to 1"):
        Blocking(p)


def test_sources_and_tokenizers_without_words_are_refused(tokenizer: Any, policy: RolloutPolicy) -> None:
    for text in ("", " \n "):
        with pytest.raises(ValueError, match=r"has no words, so there is nothing to block"):
            EVERYTHING.dictionary(text, tokenizer)
    for letters in (byte_tokenizer(), make_tokenizer()):  # those of lion demo: letters
        with pytest.raises(ValueError, match="has no tokens of words: a space is a token of its own"):
            EVERYTHING.dictionary("like tako.", letters)
    whole = Tokenizer(models.WordLevel({"like apples": 0, "<unk>": 1}, unk_token="<unk>"))
    with pytest.raises(ValueError, match="does not split a text into words"):
        EVERYTHING.dictionary("like apples", PreTrainedTokenizerFast(tokenizer_object=whole))  # type: ignore[no-untyped-call]
    with pytest.raises(ValueError, match=r"f:1: the source '  ' has no words"):
        sampled(policy, BlockingSampler(SamplingSettings(max_new_tokens=4)), [Prompt("  ", (3,), where="f:1")])


class SlowTokenizer:
    is_fast = False


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(ValueError, match="SlowTokenizer does not tell words apart; blocking needs a fast tokenizer"):
        EVERYTHING.dictionary(SOURCE, SlowTokenizer())  # type: ignore[arg-type]


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_greedy_answers_that_would_be_equal_are_refused(policy: RolloutPolicy, tokenizer: Any, p: float) -> None:
    sampler = BlockingSampler(SamplingSettings(temperature=0.0), blocking=Blocking(p))
    with pytest.raises(ValueError, match=rf"blocking.p is {p}, so the 2 answers per prompt would be identical"):
        sampled(policy, sampler, [prompt(SOURCE, tokenizer)], 2)


def test_a_step_without_any_token_left_is_an_error() -> None:
    processor = BlockedSuccessors([{3: frozenset({0, 1, 2, 3})}], 0)
    with pytest.raises(ValueError, match=r"leaves no token that could come next; lower blocking.p"):
        processor(torch.tensor([[3]]), torch.zeros(1, 4))


def test_samplers_without_processors_and_policy_gradients_take_no_blocking() -> None:
    with pytest.raises(ValueError, match="BlockingSampler: its logits processors change the distribution"):
        BlockingSampler(SamplingSettings(temperature=1.0)).check_distribution()
    for other in (ServerSampler, VLLMSampler):
        assert not hasattr(other, "processors")
        with pytest.raises(TypeError, match="unexpected keyword argument 'blocking'"):
            other(blocking=Blocking())  # type: ignore[call-arg]


def test_what_determines_the_answers_is_said() -> None:
    made = [BlockingSampler(), BlockingSampler(blocking=Blocking(0.4)), BlockingSampler(column="text")]
    assert len({str(sampler.identity()) for sampler in made}) == 3
    assert BlockingSampler().identity()["p"] == 0.5


@pytest.mark.parametrize(("bert_score", "bleu", "expected"), [(0.9, 0.5, 0.775862), (0.95, 0.2, 0.915663)])
def test_the_metric_is_a_weighted_harmonic_mean(bert_score: float, bleu: float, expected: float) -> None:
    assert bert_ibleu(bert_score, bleu) == pytest.approx(expected, abs=1e-6)


def test_a_copy_has_the_metric_0_and_percents_are_refused() -> None:
    assert bert_ibleu(1.0, 1.0) == bert_ibleu(-0.1, 0.5) == 0
    with pytest.raises(ValueError, match="divide percents by 100"):
        bert_ibleu(95, 20)


def test_self_bleu_is_bleu_4_by_hand() -> None:
    # 6 of 7 words, 4 of 6 bigrams, 2 of 5 trigrams and 1 of 4 4-grams are the source's; the lengths are equal
    expected = (6 / 7 * 4 / 6 * 2 / 5 * 1 / 4) ** 0.25
    assert self_bleu("the cat sat on the mat today", "the cat sat on a mat today") == pytest.approx(expected)
    # brevity: two words of three, and the bigram
    assert self_bleu("a b c", "a b") == pytest.approx(math.exp(1 - 3 / 2))
    assert self_bleu("To be.", "to be .") == 1  # a copy, though it has no 4-gram
    assert self_bleu("to be", "") == self_bleu("to be", "or not") == 0


def test_candidates_are_ranked_by_the_metric() -> None:
    source = "the cat sat on the mat today"
    candidates = [source, "a dog", "today a cat was on the mat"]
    # a copy, then something else, then a paraphrase
    assert rank(source, candidates, [1.0, 0.3, 0.9]) == [candidates[2], candidates[1], candidates[0]]


def test_a_sentence_to_restore_has_some_of_its_words_in_another_order() -> None:
    sentence = "one two three four five six seven eight nine ten"
    [row] = restore({"text": sentence, "id": 3})
    words = row["question"].split()
    assert len(words) == 7  # 30% of ten are deleted
    assert {*words} < {*sentence.split()}
    assert words != sorted(words, key=sentence.index)
    assert row["answer"] == sentence
    assert restore({"text": sentence}) == [row]
    assert Corruption(seed=1)({"text": sentence}) != [row]
    assert sorted(Corruption("s", delete=0.0)({"s": "a b c"})[0]["question"]) == [" ", " ", "a", "b", "c"]
    assert restore({"text": "word"}) == []
    example = recognize(row)
    assert [turn.content for turn in example.messages] == [row["question"], sentence]  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="delete is 1; give a share"):
        Corruption(delete=1)


def test_a_config_names_the_sampler(
    policy: RolloutPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    policy.write(tmp_path / "model")
    (tmp_path / "questions.jsonl").write_text(json.dumps({"question": SOURCE, "answer": SOURCE}) + "\n")
    monkeypatch.chdir(tmp_path)
    init = {"sampling": {"temperature": 0.0, "max_new_tokens": 4}, "blocking": {"p": 1.0, "keep": []}}
    sampler: dict[str, Any] = {"class_path": "examples.nonfree.dynamic_blocking.BlockingSampler", "init_args": init}
    verifier = {"class_path": "lion_lightning.judges.ExactMatch", "init_args": {"column": "answer"}}
    judge = {"class_path": "lion_lightning.judges.VerifierJudge", "init_args": {"verifier": verifier}}
    asked = ["evaluate", "--model", "model", "--prompts", '[{"path": "questions.jsonl"}]', "--judge", json.dumps(judge)]
    assert main([*asked, "--out", "one", "--sampler", json.dumps(sampler)]) == 0
    row = json.loads((tmp_path / "one" / "answers.jsonl").read_text().splitlines()[-1])
    said = row["answer"].split()
    assert len(said) > 2
    assert not {*pairwise(SOURCE.split())} & {*pairwise(said)}
    sampler["init_args"] = init | {"blocking": {"p": 2.0}}
    capsys.readouterr()
    assert main([*asked, "--out", "two", "--sampler", json.dumps(sampler)]) == 2
    assert "blocking.p is 2.0; give a probability" in capsys.readouterr().err


@pytest.mark.slow
def test_the_demonstration() -> None:
    found = demo.main(["--steps", "120", "--sentences", "50", "--seeds", "0"])
    assert found[0.0]["bigrams copied"] > 0.95
    assert 0.2 < found[0.5]["bigrams copied"] < 0.5
    assert found[1.0]["bigrams copied"] == 0
    # of a perfect copier each second word is exchanged
    assert found[1.0]["words kept"] == pytest.approx(0.5, abs=0.02)
    assert all(figures["meanings kept"] > 0.95 for figures in found.values())


def test_nothing_in_the_package_knows_of_it() -> None:
    for path in [*(ROOT / "lion_lightning").rglob("*.py"), *(ROOT / "callbacks").rglob("*.py")]:
        assert "nonfree" not in path.read_text("utf-8"), path
