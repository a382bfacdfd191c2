"""Pictures and sounds in rows: by the names of their columns, and by what the columns hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MEDIA = r"""(?x) (?!(?:num|n|has|is|no|with|needs|contains)_) (?:[a-z\d]+_)*
    (?:(?:image|img|picture|photo|video|audio|waveform|spectrogram|sound|wav|mp3|mp4|gif|jpe?g|png|screenshot|
    thumbnail|pixel_value)s? | (?<![a-z\d]_)(?:media|frame|speech|clip|recording)s?) _?\d*
    (?:_(?:path|url|uri|link|file|file_?name|name|byte|data|base64|b64|value|feature|embed|embedding|list|array|content|
    video|image|audio|frame|clip|grid_thw)s?)*"""
"""Pattern of the names. Some say something else behind another word, as ``time_frame`` and ``social_media`` do."""

_STARTS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"OggS", b"fLaC", b"ID3", b"II*\0", b"MM\0*")
_DATA_URLS = ("data:image/", "data:audio/", "data:video/")


def is_media(value: Any) -> bool:
    """Whether a value is a picture or a sound, or a list of them, whatever its column is called.

    Args:
        value: Of a column, as ``datasets`` and parquet files have it.
    """
    if isinstance(value, list | tuple):
        return bool(value) and is_media(value[0])
    if isinstance(value, Mapping):
        return value.keys() >= {"array", "sampling_rate"} or is_media(value.get("bytes"))
    if isinstance(value, str):
        return value.startswith(_DATA_URLS)
    return isinstance(value, bytes) and (value.startswith(_STARTS) or value[4:8] == b"ftyp")
