"""``COMPATIBILITY.md``: the matrix in words, for whoever reads text. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from qvlfp8.site.matrix_view import Matrix, producer

__all__ = ["page"]

_HEAD = """\
# Compatibility

Which FP8 checkpoint, made how, does what in which vLLM, by executed records. Made by `qvlfp8 publish`.

The models are the project's own Qwen2.5-VL of 4.2 million parameters: `seeing` ones were trained to speak and
see, `tiny` ones have random weights; `tied` ones share embedding and head, as the published 3B does, `untied`
ones do not, like 7B. A range of versions names the first and the last of those that were asked, in order.
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
    if matrix.why_uncommitted:
        yield f"\n{matrix.why_uncommitted}"
    yield "\n## What sees, by vLLM\n"
    yield "Each recipe that was seen to, by the newest producer with which it was; run in eager mode.\n"
    yield "| vLLM | recipes |"
    yield "|---|---|"
    for seeing in matrix.seeing:
        told = ", ".join(f"{one.cell.recipe.id} ({producer(one.cell)})" for one in seeing.cells)
        yield f"| {seeing.version} | {told} |"
    for group in matrix.groups:
        yield f"\n## {group.recipe}\n\n{group.description}\n"
        yield "| quantized by | transformers | model | run as | in vLLM |"
        yield "|---|---|---|---|---|"
        for row in group.rows:
            yield (
                f"| {row.producer} | {row.transformers} | {row.model} | {row.variant or 'eager'} "
                f"| {row.words} |"
            )
