"""Comments in a prompt."""

from __future__ import annotations

import re

_LINE = re.compile(r"^[ \t]*#[^\n]*(?:\n|\Z)", re.MULTILINE)
_END = re.compile(r"#[^\n]*")


def without_comments(prompt: str) -> str:
    """The prompt without ``#`` and what follows it in its line; a line of nothing else goes too."""
    if "#" not in prompt:
        return prompt
    return _END.sub("", _LINE.sub("", prompt))
