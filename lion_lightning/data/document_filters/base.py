"""Base of the rules that leave out training examples by what they say."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from lion_lightning.cache import hash_json
from lion_lightning.data.document_filters.candidates import Candidates
from lion_lightning.data.selection.spans import Choice
from lion_lightning.data.sources.source import Source


class LeftOut(NamedTuple):
    """Decision of a filter about the examples of a source.

    Attributes:
        causes: By cause, ``(examples,)`` whether each is left out. One with several causes is counted by the first.
        report: Counts as plain data that JSON can hold, for the model card.
        lines: What was found, for the log and ``lion inspect``.
        warnings: What somebody should act on, each with what to do.
        details: Which rows and why, as plain data: kept in the file of the decision, which the log names.
    """

    causes: Mapping[str, Choice]
    report: Mapping[str, Any] = {}
    lines: Sequence[str] = ()
    warnings: Sequence[str] = ()
    details: Sequence[Any] = ()


class DocumentFilter(ABC):
    """A rule that leaves out training examples by what they say. Subclass it and name the subclass in ``class_path``.

    It sees what is trained of each source (of online training: the prompts) after duplicates were dropped, as it was
    read and before any is truncated. What is validated on is not filtered, so that runs with and without a filter
    validate on the same. The decision is made once and kept in the cache, so it may rest on nothing but the examples
    and :meth:`identity`.
    """

    needs_all_examples: ClassVar[bool] = False
    """True if the decision about an example rests on the others, so that sources that stream are refused."""

    @abstractmethod
    def leave_out(self, candidates: Candidates) -> LeftOut:
        """Decide which examples are left out, and why.

        Args:
            candidates: Examples of one source. Of a source that streams it is a block of them.
        """

    def identity(self) -> dict[str, Any]:
        """Everything that decides what is left out, as plain data: ranks and resumed runs compare it.

        By default the class, the code of its file, and the settings that the object keeps under public names. A filter
        that reads a file overrides this and adds a hash of the content.
        """
        kind, own = type(self), {name: value for name, value in vars(self).items() if not name.startswith("_")}
        module = inspect.getmodule(kind)
        code = inspect.getsource(module) if module and getattr(module, "__file__", None) else ""
        return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "code": hash_json(code)[:12], **own}

    def check(self, sources: Sequence[Source]) -> None:
        """Refuse training sources that the filter cannot work on; nothing is read here.

        Raises:
            ValueError: There is one.
        """
        streamed = [source for source in sources if source.streaming]
        if streamed and self.needs_all_examples:
            raise ValueError(
                f"data.document_filters: {type(self).__name__} needs all examples of a source, and {streamed[0].label} "
                "streams; leave `streaming` out, or filter the rows beforehand"
            )
