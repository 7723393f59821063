# SPDX-License-Identifier: Apache-2.0
"""One error for all that a library's parser raises on a damaged file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def parsing(path: Path, kind: str, advice: str) -> Iterator[None]:
    """Turn every error of a parser into a ``ValueError`` of one sentence.

    Parsers raise errors of any type on damaged files, for example ``struct.error`` and ``ZeroDivisionError``.

    Args:
        path: the file that the block reads.
        kind: what the file should be, with its article.
        advice: what to do about it.

    Raises:
        ValueError: if the block raises an error.
    """
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())
        msg = f"{path} cannot be read as {kind} ({f'{type(error).__name__}: {reason}'.rstrip(': ')}): {advice}."
        raise ValueError(msg) from error
