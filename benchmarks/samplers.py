"""Tokens a second of each sampler on the same prompts.

    python benchmarks/samplers.py --model FOLDER --prompts gsm8k/train.jsonl --count 64 --samples 4

``server`` needs ``--url`` of a vLLM server of the same model. The first call of each sampler is not timed: it starts
engines and compiles.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of a model")
    parser.add_argument("--prompts", required=True, help="file of prompts, in any form that data.prompts reads")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=64, help="of the transformers sampler")
    parser.add_argument("--url", help="of a vLLM server")
    parser.add_argument(
        "--samplers", nargs="+", default=["transformers", "vllm"], choices=["transformers", "vllm", "server"]
    )
    options = parser.parse_args()
    print(f"{options.count} prompts x {options.samples}, at most {options.max_new_tokens} new tokens")
    for name in options.samplers:
        tokens, seconds = measure(name, options)
        print(f"{name:14}{tokens:8,} tokens in {seconds:6.1f} s: {tokens / seconds:7.1f} tokens/s", flush=True)


def measure(name: str, options: argparse.Namespace) -> tuple[int, float]:
    """New tokens and seconds of one sampler.

    Args:
        name: Which.
        options: From the command line.
    """
    from lion_lightning import PolicySpec, Source, TokenizerSpec
    from lion_lightning.models.generation.rollout_policy import RolloutPolicy
    from lion_lightning.rollouts.prompts.pool import PromptPool
    from lion_lightning.sampling import SamplingSettings, ServerSampler, TransformersSampler, VLLMSampler

    tokenizer = TokenizerSpec(options.model).load()
    pool = PromptPool([Source(options.prompts)], tokenizer)
    prompts = [asked.prompt for asked in pool.take(range(options.count))]
    settings = SamplingSettings(temperature=0.8, max_new_tokens=options.max_new_tokens)
    makers: dict[str, Callable[[], Any]] = {
        "transformers": lambda: TransformersSampler(settings, options.batch_size),
        "vllm": lambda: VLLMSampler(settings, max_model_len=2048),
        "server": lambda: ServerSampler(options.url, sampling=settings, seeded=False),
    }
    sampler = makers[name]()
    sampler.open(RolloutPolicy(PolicySpec(path=str(Path(options.model))).build(), tokenizer))
    sampler.sample(prompts[:2], 1, 0)
    started = time.perf_counter()
    answers = sampler.sample(prompts, options.samples, 1)
    seconds = time.perf_counter() - started
    sampler.close()
    return sum(len(answer.token_ids or ()) for row in answers for answer in row), seconds


if __name__ == "__main__":
    main()
