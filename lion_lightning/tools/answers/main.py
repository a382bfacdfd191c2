"""``lion answers``: answer a benchmark's questions in its file format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lion_lightning.tools.settings_parser import SettingsParser

DESCRIPTION = """Answer the questions of a benchmark and write the answer file that its tool reads.
The file is named after the model.
Questions that are already answered in the file are skipped. Use --temperature 0 for greedy decoding."""
EXAMPLE = (
    "Example: lion answers --format alpaca_eval --model runs/dpo/export --prompts alpaca_eval.json --out answers.json"
)

SAMPLER = "lion_lightning.sampling.TransformersSampler"


def main(arguments: list[str]) -> None:
    """Run the command."""
    parser = _parser()
    options = parser.instantiate(parser.parse_args(arguments))
    from lion_lightning.data.encoding.chat import ChatEncoder
    from lion_lightning.tools.answers import FORMATS, write_answers
    from lion_lightning.tools.answers.run import MultiTurnSampler
    from lion_lightning.tools.chat.conversation import load_served

    if options.format not in FORMATS:
        raise ValueError(f"--format: {options.format!r} is unknown; the formats are {', '.join(FORMATS)}")
    form = FORMATS[options.format]
    form.questions(options.prompts)  # check the files before loading the model, which may take minutes
    form.answered(options.out)
    policy = load_served(options.model, options.trust_remote_code, options.template_kwargs)
    encoder = ChatEncoder(policy.tokenizer, mask="completion")
    sampler = MultiTurnSampler(options.sampler, encoder, options.temperature, options.seed)
    asked = write_answers(form, options.prompts, options.out, policy, sampler, options.save_every)
    print(f"wrote {options.out} ({asked} new answers)")


def _parser() -> SettingsParser:
    from lion_lightning.sampling import Sampler

    parser = SettingsParser(prog="lion answers", description=DESCRIPTION, epilog=EXAMPLE)
    parser.add_argument("--format", required=True, help="alpaca_eval, arena_hard or mt_bench")
    parser.add_argument("--model", required=True, help="a Hugging Face folder, e.g. runs/dpo/export, or a hub id")
    parser.add_argument("--prompts", type=Path, required=True, help="the benchmark's question file")
    parser.add_argument("--out", type=Path, required=True, help="the answer file, e.g. model_answer/MODEL.jsonl")
    parser.add_argument("--sampler", type=Sampler, default={"class_path": SAMPLER}, help="class of the sampler")
    parser.add_argument(
        "--temperature",
        type=float | None,
        default=None,
        help="temperature of all answers (by default that of the benchmark)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed for sampling")
    parser.add_argument(
        "--save-every", type=int, default=64, help="number of questions that are answered and saved together"
    )
    parser.add_argument(
        "--template-kwargs",
        type=dict[str, Any] | None,
        default=None,
        help="variables of the chat template, e.g. '{\"enable_thinking\": false}'",
    )
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    return parser
