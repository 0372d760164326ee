"""Encoded texts, kept by a byte budget."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from farm.worker.engine.requests import EncodeText
from farm.worker.models.text import TextEncoding


class TextCache:
    """The texts used last, as many as fit in ``budget_bytes`` of device memory.

    Args:
        origin: what texts are made with beside their request. When it is no longer what it was,
            all are forgotten.
    """

    def __init__(self, budget_bytes: int, origin: Callable[[], object] = lambda: None) -> None:
        self._budget = budget_bytes
        self._origin = origin
        self._made_with = origin()
        self._bytes = 0
        self._texts: OrderedDict[EncodeText, TextEncoding] = OrderedDict()

    def get(self, request: EncodeText) -> TextEncoding | None:
        """What the request made, if it is still here."""
        if self._origin() != self._made_with:
            self._made_with = self._origin()
            self._texts.clear()
            self._bytes = 0
        text = self._texts.get(request)
        if text is not None:
            self._texts.move_to_end(request)
        return text

    def put(self, request: EncodeText, text: TextEncoding) -> None:
        """Keep a text, and let go of those used longest ago that no longer fit."""
        if request in self._texts:
            return
        self._texts[request] = text
        self._bytes += _size(text)
        while self._bytes > self._budget:
            _, oldest = self._texts.popitem(last=False)
            self._bytes -= _size(oldest)


def _size(text: TextEncoding) -> int:
    return text.tokens.nbytes + (0 if text.pooled is None else text.pooled.nbytes)
