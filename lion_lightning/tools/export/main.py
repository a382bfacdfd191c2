"""``lion export``: write a checkpoint as a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

from lion_lightning.processes.command_line import CommandParser


def main(arguments: list[str]) -> None:
    """Run the command.

    Args:
        arguments: Command line after ``lion export``.
    """
    from lion_lightning.models.checkpoints.export import export_checkpoint

    parser = CommandParser(
        prog="lion export",
        description="Write a checkpoint as a Hugging Face folder.",
        epilog="Example: lion export runs/sft/checkpoints/last.ckpt runs/sft/export",
    )
    parser.add_argument("checkpoint", help="a .ckpt file, e.g. runs/sft/checkpoints/last.ckpt")
    parser.add_argument("out", help="folder to write")
    parser.add_argument("--adapter", action="store_true", help="write the LoRA adapters in PEFT's format, unmerged")
    parser.add_argument("--base", help="folder of the model that the adapters were trained on, if it has moved")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    options = parser.parse_args(arguments)
    _refuse_folder_of_checkpoints(Path(options.checkpoint))
    folder = export_checkpoint(
        options.checkpoint, options.out, options.adapter, options.base, options.trust_remote_code
    )
    print(f"wrote {folder}")


def _refuse_folder_of_checkpoints(path: Path) -> None:
    """Name the checkpoint to take; a checkpoint may be a folder itself, of shards."""
    from lion_lightning.models.checkpoints.files import newest_checkpoint
    from lion_lightning.models.checkpoints.folders import is_folder

    if not path.is_dir() or is_folder(path):
        return
    last = path / "last.ckpt"
    found = last if last.exists() else newest_checkpoint(path)
    if found is not None:
        raise ValueError(f"{path}: a folder of checkpoints; name one of them, e.g. {found}")
