"""``COMPATIBILITY.md``: the matrix in words, for whoever reads text. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from qvlfp8.site.matrix_view import Matrix

__all__ = ["page"]

_HEAD = """\
# Compatibility

Which FP8 checkpoint, made how, does what in which vLLM, by executed records. Made by `qvlfp8 publish`.
"""


def page(matrix: Matrix) -> str:
    """The whole page. It says nothing that a log or a model has written."""
    return "\n".join(_lines(matrix)) + "\n"


def _lines(matrix: Matrix) -> Iterator[str]:
    yield _HEAD
    yield "| word | cells | meaning |"
    yield "|---|---|---|"
    for one in matrix.legend:
        yield f"| {one.word} | {one.cells} | {one.meaning} |"
    for group in matrix.groups:
        yield f"\n## {group.recipe}\n\n{group.description}\n"
        yield "| quantized by | transformers | model | run as | in vLLM |"
        yield "|---|---|---|---|---|"
        for row in group.rows:
            yield (
                f"| {row.producer} | {row.transformers} | {row.model} | {row.variant or 'eager'} "
                f"| {row.words} |"
            )
