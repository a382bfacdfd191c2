"""``lion answers``: a model's answers to a benchmark's questions, in the benchmark's own file."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser

DESCRIPTION = """Answer the questions of a benchmark and write what its own tool reads. The answer file is named after
the model, as the tools have it. Questions that it has answers to are not asked again. Greedy is --temperature 0."""

SAMPLER = "lion_lightning.sampling.TransformersSampler"


def main(arguments: list[str]) -> None:
    """Run the command.

    Args:
        arguments: Command line after ``lion answers``.

    Raises:
        ValueError: If a file or the model cannot be used.
    """
    parser = _parser()
    options = parser.instantiate(parser.parse_args(arguments))
    from lion_lightning.data.encoding.chat import ChatEncoder
    from lion_lightning.tools.answers import FORMATS, write_answers
    from lion_lightning.tools.answers.writing import Asking
    from lion_lightning.tools.chat.conversation import load_served

    if options.format not in FORMATS:
        raise ValueError(f"--format: {options.format!r} is unknown; the formats are {', '.join(FORMATS)}")
    form = FORMATS[options.format]
    form.questions(options.prompts)  # before the model is loaded, which may take minutes
    form.answered(options.out)
    policy = load_served(options.model, options.trust_remote_code)
    encoder = ChatEncoder(policy.tokenizer, mask="completion")
    asking = Asking(options.sampler, encoder, options.temperature, options.seed)
    asked = write_answers(form, options.prompts, options.out, policy, asking, options.save_every)
    print(f"wrote {options.out} ({asked} questions asked)")


def _parser() -> ArgumentParser:
    from lion_lightning.sampling import Sampler

    parser = ArgumentParser(prog="lion answers", description=DESCRIPTION, exit_on_error=False)
    parser.add_argument("--format", required=True, help="alpaca_eval, arena_hard or mt_bench")
    parser.add_argument("--model", required=True, help="a Hugging Face folder, e.g. runs/dpo/export, or a hub id")
    parser.add_argument("--prompts", type=Path, required=True, help="the benchmark's question file")
    parser.add_argument("--out", type=Path, required=True, help="the answer file, e.g. model_answer/MODEL.jsonl")
    parser.add_argument(
        "--sampler", type=Sampler, default={"class_path": SAMPLER}, help="class of what answers, e.g. one of yours"
    )
    parser.add_argument(
        "--temperature", type=float | None, default=None, help="of all answers, in place of the benchmark's own"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--save-every", type=int, default=64, help="questions asked at once, and saved together")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    return parser
