"""A look at a model: where it is, its chat template and its length."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from lion_lightning.errors import first_line
from lion_lightning.models.policy import position_limit
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec

DEFAULT = "HuggingFaceTB/SmolLM2-135M"


@dataclass
class Model:
    """Settings for a model, and lines about it.

    Attributes:
        policy: The line of a config.
        tokenizer: The same; empty where the model's own is right.
        positions: Longest sequence; None if unknown.
        lines: For people.
    """

    policy: str
    tokenizer: str = ""
    positions: int | None = None
    lines: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, name: str | None) -> Self:
        """Look at a model's config and tokenizer; weights are not read.

        Args:
            name: Folder or hub id; None for one to be edited.

        Raises:
            ValueError: There is no such folder.
        """
        if name is None:
            policy = f"{{path: {DEFAULT}, recompute: none}}  # <-- edit: any causal LM, folder or hub id"
            tokenizer = f"tokenizer: {{path: {DEFAULT}, chat_template: chatml}}  # <-- edit: by default the model's own"
            return cls(policy, tokenizer)
        folder = Path(name).expanduser()
        if name.startswith((".", "/", "~")) and not folder.is_dir():
            raise ValueError(f"--model: there is no folder {name}; give a folder or a hub id")
        has_weights = not folder.is_dir() or any(folder.glob("*.safetensors"))
        made = cls(f"{{{'path' if has_weights else 'config'}: {_quoted(name)}, recompute: none}}")
        if not has_weights:
            made.lines.append(f"{name}: no weights in the folder, so training starts from random ones")
        made._look(name, has_weights)
        return made

    def _look(self, name: str, has_weights: bool) -> None:
        try:
            spec = PolicySpec(path=name) if has_weights else PolicySpec(config=name)
            self.positions = position_limit(spec.load_config())
            tokenizer = TokenizerSpec(name).load()
        except (ValueError, OSError) as error:
            settings = f"tokenizer: {{path: {_quoted(name)}, chat_template: chatml}}"
            self.tokenizer = f"# {settings}  # <-- edit: for a model without a template"
            self.lines.append(f"{name}: not looked at ({first_line(error)})")
            return
        if tokenizer.chat_template:
            self.lines.append(f"{name}: it has its own chat template")
            return
        # chatml needs tokens that a base model may not have; zephyr is plain text and the EOS token
        template = "chatml" if "<|im_start|>" in tokenizer.get_vocab() else "zephyr"
        comment = "# <-- edit: the model has no chat template"
        self.tokenizer = f"tokenizer: {{path: {_quoted(name)}, chat_template: {template}}}  {comment}"
        self.lines.append(f"{name}: it has no chat template, so it learns {template}")


def _quoted(name: str) -> str:
    """A text for a YAML line: quoted where it would be read as something else."""
    return name if all(char.isalnum() or char in "/._-" for char in name) else "'" + name.replace("'", "''") + "'"
