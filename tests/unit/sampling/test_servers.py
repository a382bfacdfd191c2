"""Servers and sync checks: retries, request bodies, and engines that serve other weights than the policy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lion_lightning.distributed.ranks import Ranks
from lion_lightning.endpoint.client import Endpoint
from lion_lightning.models.generation.rollout_policy import RolloutPolicy
from lion_lightning.sampling import (
    EngineError,
    SamplingSettings,
    ServerSampler,
    SGLangWeightSync,
    SyncCheck,
    VLLMWeightSync,
)
from lion_lightning.types import Answer, Prompt
from tests.unit.chat_server import serving

VOCABULARY = 11
PROMPTS = [Prompt("a", (1, 2), where="f:1"), Prompt("b", (3,), where="f:2")]


class Policy(RolloutPolicy):
    """A policy of three log-prob tables, whose weights are one number."""

    model = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=None))
    adapters = None

    def __init__(self) -> None:
        self.weight = 0.0
        self.tokenizer: Any = range(VOCABULARY)
        self.ranks = Ranks()
        self.end_ids = (2,)

    def tables(self, weight: float, prompts: Sequence[Sequence[int]]) -> Tensor:
        rows = [torch.arange(VOCABULARY) * (0.1 + weight) + len(ids) for ids in prompts]
        return torch.stack(rows).log_softmax(-1)

    def next_logps(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        return self.tables(self.weight, prompts)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        yield "weight", torch.tensor(self.weight)

    def write_settings(self, folder: Path) -> None:
        pass

    def write(self, folder: Path | None) -> None:
        assert folder is not None
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "weight").write_text(str(self.weight))

    @contextmanager
    def generating(self) -> Iterator[None]:
        yield


def engine(policy: Policy, weight: float, noise: float = 0.0) -> Any:
    def next_logps(prompts: Sequence[Sequence[int]]) -> list[dict[int, float]]:
        rows = policy.tables(weight, prompts) + noise
        return [{int(token): float(row[token]) for token in row.topk(5).indices} for row in rows]

    return next_logps


# --- sync check


def test_an_engine_that_serves_the_policy_passes_also_with_noise() -> None:
    policy, check = Policy(), SyncCheck(1e-3)
    for weight in (0.0, 0.01, 0.02, 0.02):
        policy.weight = weight
        check.check(policy, engine(policy, weight, noise=4e-4))


def test_an_engine_far_off_is_found_out_at_once() -> None:
    policy = Policy()
    with pytest.raises(EngineError, match=r"log-probs differ from the policy.s by 0\.\d+"):
        SyncCheck(1e-3).check(policy, engine(policy, 0.1))


def test_stale_weights_are_found_out_below_the_tolerance() -> None:
    policy, check = Policy(), SyncCheck(0.2)
    check.check(policy, engine(policy, 0.0, noise=0.05))
    policy.weight = 0.02  # moves log-probs by some 0.1: within the tolerance
    with pytest.raises(EngineError, match="still serves the previous weights"):
        check.check(policy, engine(policy, 0.0, noise=0.05))


def test_a_move_too_small_to_be_seen_in_bf16_is_not_judged() -> None:
    policy, check = Policy(), SyncCheck(0.2)
    check.check(policy, engine(policy, 0.0))
    policy.weight = 1e-5
    check.check(policy, engine(policy, 0.0))


def test_an_engine_that_says_nothing_is_not_trusted() -> None:
    with pytest.raises(EngineError, match=r"differ from the policy.s by inf"):
        SyncCheck().check(Policy(), lambda prompts: [{} for _ in prompts])


def test_one_probe_prompt_is_longer_than_a_block_of_a_cache() -> None:
    seen: list[int] = []
    policy = Policy()

    def spy(prompts: Sequence[Sequence[int]]) -> Any:
        seen.extend(len(ids) for ids in prompts)
        return engine(policy, 0.0)(prompts)

    SyncCheck().check(policy, spy)
    assert max(seen) == 300


# --- endpoint


def test_failures_are_retried_and_then_named_with_their_number() -> None:
    calls: list[int] = []

    def reply(route: str, body: Any) -> tuple[int, Any]:
        calls.append(1)
        return (503, None) if len(calls) < 3 else (200, {"ok": True})

    with serving(reply) as url:
        assert Endpoint(url, retries=2, backoff=0.01).post("/x") == {"ok": True}
        assert len(calls) == 3
        calls.clear()
        with pytest.raises(ConnectionError, match=r"no response after 2 attempts in 0 s \(503"):
            Endpoint(url, retries=1, backoff=0.01).post("/x")


def test_a_refusal_is_not_retried_and_says_why() -> None:
    calls: list[int] = []

    def reply(route: str, body: Any) -> tuple[int, Any]:
        calls.append(1)
        return 400, {"error": {"message": "too long"}}

    with serving(reply) as url, pytest.raises(ValueError, match=r"refuses the request \(400\): too long"):
        Endpoint(url, backoff=0.01).post("/x")
    assert len(calls) == 1


def test_the_key_is_sent_and_a_missing_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="environment variable LION_TEST_KEY is not set"):
        Endpoint("http://127.0.0.1:9", api_key_env="LION_TEST_KEY").post("/x")
    monkeypatch.setenv("LION_TEST_KEY", "secret-word")
    endpoint = Endpoint("http://127.0.0.1:9", api_key_env="LION_TEST_KEY", retries=0)
    with pytest.raises(ConnectionError) as error:
        endpoint.post("/x")
    assert "secret-word" not in str(error.value)
    assert "secret-word" not in repr(vars(endpoint))


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x", ""])
def test_an_address_without_a_scheme_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="is not an address"):
        Endpoint(url)


# --- the sampler


class Server:
    """vLLM's routes, over a policy's tables; ``deaf`` leaves its weights as they are."""

    def __init__(self, policy: Policy, deaf: bool = False, ids: bool = True) -> None:
        self.policy, self.deaf, self.ids, self.weight = policy, deaf, ids, 0.0
        self.routes: list[str] = []
        self.bodies: list[Any] = []

    def __call__(self, route: str, body: Any) -> tuple[int, Any]:
        self.routes.append(route)
        if route == "/v1/models":
            return 200, {"data": [{"id": "served"}]}
        if route == "/collective_rpc" and not self.deaf:
            self.weight = float((Path(body["kwargs"]["weights_path"]) / "weight").read_text())
        if route != "/v1/completions":
            return 200, {}
        if "logprobs" in body:
            tops = engine(self.policy, self.weight)([body["prompt"]])[0]
            return 200, {
                "choices": [{"text": "", "logprobs": {"top_logprobs": [{f"token_id:{t}": v for t, v in tops.items()}]}}]
            }
        self.bodies.append(body)
        return 200, {"choices": [self.choice(body, number) for number in range(body["n"])]}

    def choice(self, body: Any, number: int) -> Any:
        made = {"text": f"{body['prompt']} {number}", "finish_reason": "length" if number else "stop"}
        return made | ({"token_ids": [7, number], "stop_reason": None} if self.ids else {})


def sampler(url: str, **more: Any) -> ServerSampler:
    return ServerSampler(url, sampling=SamplingSettings(0.7, 0.9, 5, 12, ("END",)), retries=0, **more)


def test_answers_come_in_order_with_tokens_and_reasons(tmp_path: Path) -> None:
    policy = Policy()
    server = Server(policy)
    with serving(server) as url:
        made = sampler(url, weight_sync=VLLMWeightSync(str(tmp_path)), tolerance=1e-3)
        made.open(policy)
        answers = made.sample(PROMPTS, 2, seed=4)
    assert answers[1] == [Answer("[3] 0", "stop", (7, 0)), Answer("[3] 1", "length", (7, 1))]
    assert [answer.text for answer in answers[0]] == ["[1, 2] 0", "[1, 2] 1"]
    body = next(body for body in server.bodies if body["prompt"] == [3])
    assert body["model"] == "served"
    wanted = {"n": 2, "temperature": 0.7, "top_p": 0.9, "top_k": 5, "max_tokens": 12, "stop": ["END"]}
    assert wanted.items() <= body.items()
    assert len({body["seed"] for body in server.bodies}) == 2
    with serving(server) as url:
        unseeded = sampler(url, seeded=False)
        unseeded.open(policy)
        unseeded.sample(PROMPTS[:1], 1, seed=4)
    assert "seed" not in server.bodies[-1]


def test_a_servers_own_settings_are_overruled() -> None:
    """Left out, vLLM and SGLang take top_k and penalties from the model's generation_config.json."""
    server = Server(Policy())
    with serving(server) as url:
        plain = ServerSampler(url, sampling=SamplingSettings(temperature=1.0, max_new_tokens=4), tolerance=None)
        plain.open(Policy())
        plain.sample(PROMPTS[:1], 1, seed=4)
    wanted = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
    assert (wanted | {"presence_penalty": 0.0, "frequency_penalty": 0.0}).items() <= server.bodies[-1].items()


def test_a_server_without_token_ids_gives_texts() -> None:
    with serving(Server(Policy(), ids=False)) as url:
        made = sampler(url)
        made.open(Policy())
        assert made.sample(PROMPTS[1:], 1, 0) == [[Answer("[3] 0", "stop", None)]]


def test_weights_are_pushed_with_the_cache_reset_and_the_probe_asked(tmp_path: Path) -> None:
    policy = Policy()
    server = Server(policy)
    with serving(server) as url:
        made = sampler(url, weight_sync=VLLMWeightSync(str(tmp_path)), tolerance=1e-3)
        for weight in (0.0, 0.3, 0.6):
            policy.weight = weight
            made.open(policy)
            assert server.weight == weight
    pushed = [route for route in server.routes if not route.startswith("/v1")]
    assert pushed == ["/pause?mode=wait", "/collective_rpc", "/reset_prefix_cache", "/resume"] * 3


def test_a_server_that_keeps_its_weights_is_found_out(tmp_path: Path) -> None:
    policy = Policy()
    with serving(Server(policy, deaf=True)) as url:
        made = sampler(url, weight_sync=VLLMWeightSync(str(tmp_path)), tolerance=1e-3)
        made.open(policy)
        policy.weight = 0.3
        with pytest.raises(EngineError, match=r"differ from the policy.s by"):
            made.open(policy)


def test_missing_routes_say_how_to_start_the_server(tmp_path: Path) -> None:
    def reply(route: str, body: Any) -> tuple[int, Any]:
        return (200, {"data": [{"id": "m"}]}) if route == "/v1/models" else (404, {"detail": "Not Found"})

    with serving(reply) as url, pytest.raises(ValueError, match="VLLM_SERVER_DEV_MODE=1"):
        sampler(url, weight_sync=VLLMWeightSync(str(tmp_path))).open(Policy())


def test_sglang_is_told_the_folder_and_its_refusal_is_said(tmp_path: Path) -> None:
    said: list[Any] = []

    def reply(route: str, body: Any) -> tuple[int, Any]:
        said.append((route, body))
        return 200, {"success": len(said) < 3, "message": "no such folder"}

    with serving(reply) as url:
        SGLangWeightSync(str(tmp_path), "/mnt/weights").load(Endpoint(url))
        assert said == [("/update_weights_from_disk", {"model_path": "/mnt/weights"}), ("/flush_cache", {})]
        with pytest.raises(ValueError, match="no such folder"):
            SGLangWeightSync(str(tmp_path)).load(Endpoint(url))


def test_a_server_without_logprobs_needs_the_probe_switched_off(tmp_path: Path) -> None:
    def reply(route: str, body: Any) -> tuple[int, Any]:
        if route == "/v1/models":
            return 200, {"data": [{"id": "m"}]}
        return 200, {"choices": [{"text": "x", "finish_reason": "stop"}], "success": True}

    with serving(reply) as url:
        with pytest.raises(EngineError, match="tolerance: null"):
            sampler(url, weight_sync=SGLangWeightSync(str(tmp_path))).open(Policy())
        sampler(url, weight_sync=SGLangWeightSync(str(tmp_path)), tolerance=None).open(Policy())


def test_a_fixed_server_warns_once_it_is_off_policy(caplog: pytest.LogCaptureFixture) -> None:
    with serving(Server(Policy())) as url:
        made = sampler(url)
        made.open(Policy())
        assert "off-policy" not in caplog.text
        made.open(Policy())
        made.open(Policy())
    assert caplog.text.count("its answers are off-policy") == 1


def test_too_few_answers_are_named() -> None:
    def reply(route: str, body: Any) -> tuple[int, Any]:
        return 200, {"data": [{"id": "m"}], "choices": [{"text": "x", "finish_reason": "stop"}]}

    with serving(reply) as url:
        made = sampler(url)
        made.open(Policy())
        with pytest.raises(EngineError, match=r"returned 1 of 3 answers to f:1"):
            made.sample(PROMPTS, 3, 0)


def test_an_unreachable_server_is_one_clear_error() -> None:
    with pytest.raises(
        ConnectionError, match=r"http://127.0.0.1:9: no response after 3 attempts .*start the server or correct"
    ):
        ServerSampler("http://127.0.0.1:9", retries=2, backoff=0.01).open(Policy())


@pytest.mark.parametrize(
    "wrong", [{"temperature": -0.1}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_k": -1}, {"max_new_tokens": 0}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"sampling.{next(iter(wrong))} is"):
        SamplingSettings(**wrong)  # type: ignore[arg-type]


def test_an_empty_stop_text_would_end_every_answer_at_once() -> None:
    with pytest.raises(ValueError, match=r"sampling\.stop has an empty string"):
        SamplingSettings(stop=("END", ""))


# --- replies that are none


ODD_COMPLETIONS: list[tuple[Any, str]] = [
    (None, "the response is null or missing, and must be an object"),
    ([], r"the response is a list of 0 .*, and must be an object"),
    ([1, 2], r"the response is a list of 2 \(\[1, 2\]\), and must be an object"),
    ("done", "the response is 'done', and must be an object"),
    ({}, "choices is null or missing, and must be a list"),
    ({"choices": None}, "choices is null or missing, and must be a list"),
    ({"choices": {"0": "x"}}, "choices is an object with '0', and must be a list"),
    ({"choices": [None]}, r"choices\[0\] is null or missing, and must be an object"),
    ({"choices": ["x"]}, r"choices\[0\] is 'x', and must be an object"),
    ({"choices": [{}]}, r"choices\[0\]\.text is null or missing, and must be a string"),
    ({"choices": [{"text": None}]}, r"choices\[0\]\.text is null or missing"),
    ({"choices": [{"text": ["x"]}]}, r"choices\[0\]\.text is a list of 1"),
    ({"choices": [{"text": "half \ud83d"}]}, r"choices\[0\]\.text is 'half \\ud83d', and must be a string"),
    ({"choices": [{"text": "x"}]}, r"choices\[0\]\.finish_reason is null or missing"),
    (
        {"choices": [{"text": "\x1b[2J" * 30, "finish_reason": 3}]},
        r"choices\[0\]\.finish_reason is 3, and must be a string",
    ),
]


@pytest.mark.parametrize(("reply", "why"), ODD_COMPLETIONS)
def test_a_reply_that_is_none_names_the_place_in_it(reply: Any, why: str) -> None:
    with serving(lambda route, body: (200, reply if body else {"data": [{"id": "m"}]})) as url:
        made = sampler(url)
        made.open(Policy())
        with pytest.raises(ValueError, match=rf"^{url}/v1/completions: {why}") as error:
            made.sample(PROMPTS[:1], 1, 0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("ids", "why"),
    [
        ([-3], r"token_ids\[0\] is -3, and must be a token id from 0 to 10"),
        ([1, 11], r"token_ids\[1\] is 11, and must be a token id from 0 to 10"),
        ([1, 2.0], r"token_ids\[1\] is 2\.0"),
        ([True], r"token_ids\[0\] is True"),
        ([None], r"token_ids\[0\] is null"),
        (["3"], r"token_ids\[0\] is '3'"),
        ([[1]], r"token_ids\[0\] is a list of 1"),
        ({"0": 1}, "token_ids is an object"),
        ([3] * 13, "token_ids is a list of 13 .*, and must be a list of at most 12 token ids"),
    ],
)
def test_tokens_that_are_none_of_the_policy_s_are_named(ids: Any, why: str) -> None:
    choice = {"text": "x", "finish_reason": "stop", "token_ids": ids}
    with serving(lambda route, body: (200, {"choices": [choice]} if body else {"data": [{"id": "m"}]})) as url:
        made = sampler(url)
        made.open(Policy())
        with pytest.raises(ValueError, match=rf"^{url}/v1/completions: choices\[0\]\.{why}"):
            made.sample(PROMPTS[:1], 1, 0)


@pytest.mark.parametrize("reason", ["abort", "content_filter", "error", ""])
def test_an_answer_that_ended_for_another_reason_is_not_whole(reason: str) -> None:
    choice = {"text": "x", "finish_reason": reason}
    with serving(lambda route, body: (200, {"choices": [choice]} if body else {"data": [{"id": "m"}]})) as url:
        made = sampler(url)
        made.open(Policy())
        assert made.sample(PROMPTS[:1], 1, 0) == [[Answer("x", "length", None)]]


@pytest.mark.parametrize("reply", [None, [], {}, {"data": None}, {"data": []}, {"data": [{}]}, {"data": [{"id": 3}]}])
def test_a_list_of_models_that_is_none_names_the_server(reply: Any) -> None:
    with serving(lambda *_: (200, reply)) as url, pytest.raises(ValueError, match=rf"^{url}/v1/models: .*must be"):
        sampler(url).open(Policy())


@pytest.mark.parametrize(
    ("tops", "why"),
    [
        ({"token_id:3": None}, "is null or missing, and must be a finite number"),
        ({"token_id:3": float("nan")}, "is nan, and must be a finite number"),
        ({"token_id:3": float("-inf")}, "is -inf, and must be a finite number"),
        ({"token_id:3": "0.5"}, "is '0.5', and must be a finite number"),
        ({"token_id:99": -0.5}, "returned token id 99, but the policy.s vocabulary has 11"),
        ({"token_id:99999999999999": -0.5}, "returns no log-probs by token id"),
        ({"Paris": -0.5}, "returns no log-probs by token id"),
        ([], "returns no log-probs by token id"),
        ("x", "must be a list|no log-probs"),
    ],
)
def test_log_probs_that_are_none_prove_nothing(tops: Any, why: str, tmp_path: Path) -> None:
    policy = Policy()

    def reply(route: str, body: Any) -> tuple[int, Any]:
        if route == "/v1/models":
            return 200, {"data": [{"id": "m"}]}
        return 200, {"choices": [{"text": "", "logprobs": {"top_logprobs": [tops]}}]}

    with serving(reply) as url:
        made = sampler(url, weight_sync=VLLMWeightSync(str(tmp_path)), tolerance=1e9)
        with pytest.raises((ValueError, EngineError), match=why):
            made.open(policy)


def test_a_nan_among_log_probs_does_not_hide_behind_the_others() -> None:
    policy = Policy()
    said = engine(policy, 0.0)

    def with_nan(prompts: Sequence[Sequence[int]]) -> Any:
        return [{**tops, min(tops): float("nan")} for tops in said(prompts)]

    with pytest.raises(EngineError, match=r"differ from the policy.s by inf"):
        SyncCheck(0.2).check(policy, with_nan)


@pytest.mark.parametrize("reply", [None, [], "ok"])
def test_sglang_s_reply_that_is_none_is_one_line(reply: Any, tmp_path: Path) -> None:
    with serving(lambda *_: (200, reply)) as url, pytest.raises(ValueError, match=f"^{url}/update_weights_from_disk: "):
        SGLangWeightSync(str(tmp_path)).load(Endpoint(url))
