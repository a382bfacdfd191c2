"""Secrets and control characters in text on its way out."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from lion_lightning.printing import PrintableFormatter, one_line, redacted, redacted_arguments, require_no_secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://ann:pw@host:80/v1: no answer", "http://***@host:80/v1: no answer"),
        ("http://ann:p/w@host", "http://***@host"),
        ("https://tok@host/x", "https://***@host/x"),
        ("http://h/v1?api-key=abc&n=2", "http://h/v1?api-key=***&n=2"),
        ("http://h/b?sv=1&sig=aB%3D", "http://h/b?sv=1&sig=***"),
        ("CometLogger(api_key='abcd', name='x')", "CometLogger(api_key='***', name='x')"),
        ("{'api_key': 'abcd', 'n': 1}", "{'api_key': '***', 'n': 1}"),
        ("b'Bearer abcdefghijkl'", "b'Bearer ***'"),
        ("unrecognized arguments: --x.password hunter2 --n 3", "unrecognized arguments: --x.password *** --n 3"),
        ("https://h/v1/sk-abc123def/chat: no answer", "https://h/v1/***/chat: no answer"),
        ("https://h/proxy/token-4f5e6d7c/v1", "https://h/proxy/***/v1"),
        ("https://h/api_key/abcd/v1", "https://h/api_key/***/v1"),
        ("https://h/bot12345:AAbbCCddEEff/send", "https://h/***/send"),
        ("https://h/v1/aB3dE5gH7jK9mN1pQ3sT5vW7/x", "https://h/v1/***/x"),
        ("https://h/x#access_token=abcd", "https://h/x#access_token=***"),
        ("https://h/x?pwd=abcd&k=gsk_abcdefghijklmnop", "https://h/x?pwd=***&k=***"),
        ("proxy ann:hunter2@proxy.example:8080 refuses", "proxy ***@proxy.example:8080 refuses"),
        ("eyJhbGciOiJI.eyJzdWIiOiIx.SflKxwRJSMeKKF2Q", "***"),
        ("key sk-abcdefghijklmnop12 and hf_abcdefghijklmnopqr", "key *** and ***"),
    ],
)
def test_secrets_in_text_are_hidden(text: str, shown: str) -> None:
    assert redacted(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:8000: no response after 3 attempts",
        "see https://medium.com/@ann/post",
        "api_key_env: the environment variable OPENAI_API_KEY is not set",
        "write to ann@example.org or to mailto:ann@example.org",
        "https://hub/meta-llama/Meta-Llama-3-8B-Instruct/resolve/8cde5ca8380496c9a6cc7ef3a8b46a0372a1d920/model.safetensors",
        "https://hub/tasks/token-classification and https://h/sk-learn/key-value/secret-santa",
        "git@host:ann/repo.git, image:tag@sha256:0123, 12:30 @noon, step:100@loss=0.5",
        "max_new_tokens=5, eos_token='<|end|>'",
        "the bearer of news",
    ],
)
def test_other_text_stays_as_it_is(text: str) -> None:
    assert redacted(text) == text
    require_no_secrets({"prompt": text})


def test_a_line_has_no_end_within_it_whatever_was_named() -> None:
    assert one_line("a\nb\r\nc\x0bd\x0ce\u2028f\u2029g\x85h\x1ei") == "a b c d e f g h i"
    assert one_line("two  spaces\tand a\x1b[2Jtab") == "two  spaces\tand a\ufffd[2Jtab"


def test_options_named_like_secrets_lose_their_values_in_either_spelling() -> None:
    given = ["lion", "fit", "--trainer.logger.api_key=abc", "--my-secret", "abc", "--seed", "3", "--url=http://a:b@h"]
    shown = ["lion", "fit", "--trainer.logger.api_key=***", "--my-secret", "***", "--seed", "3", "--url=http://***@h"]
    assert redacted_arguments(given) == shown


@pytest.mark.parametrize(
    ("config", "place"),
    [
        ({"a": [{"url": "http://ann:hunter2@host"}]}, r"a\[0\]\.url"),
        ({"a": {"uri": "postgresql://ann:hunter2@db/x"}}, "a.uri"),
        ({"path": "https://x/y.jsonl?token=hunter2"}, "path"),
        ({"logger": {"init_args": {"api_key": "hunter2"}}}, "logger.init_args.api_key"),
        ({"password": "hunter2"}, "password"),
        ({"url": "https://host/v1/sk-hunter2/chat"}, "url"),
        ({"url": "https://host/token/k9-hunter2", "more": "https://host/key-hunter2/v1"}, "more"),
        ({"uri": "https://host/api_key/hunter2"}, "uri"),
    ],
)
def test_a_config_with_a_secret_is_refused_by_the_name_alone(config: Any, place: str) -> None:
    with pytest.raises(ValueError, match=rf"^c\.yaml: {place}: .*environment variable") as error:
        require_no_secrets(config, "c.yaml: ")
    assert "hunter2" not in str(error.value)


def test_names_of_tokens_and_variables_are_no_secrets() -> None:
    require_no_secrets(
        {"eos_token": "<|end|>", "max_new_tokens": 4, "api_key_env": "OPENAI_API_KEY", "api_key": None, "n": {"k": 1}}
    )


def test_a_log_line_neither_shows_a_secret_nor_moves_the_terminal() -> None:
    record = logging.LogRecord("x", logging.INFO, "f", 1, "at %s: \x1b[2J", ("http://a:b@h",), None)
    assert PrintableFormatter("%(message)s").format(record) == "at http://***@h: \ufffd[2J"
