"""See which elements of which parameter a loader writes, and from which checkpoint tensor.

Loaders narrow, reshape, convert and fill; names tell little. Below them all, every write is one torch
operation with a mutated argument. :class:`WriteWatch` sees these: which storage, which part of it,
and, by following storages through operations, which checkpoint tensors the data came from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["Cover", "Target", "WriteWatch", "watch_class"]


@dataclass(kw_only=True)
class Cover:
    """Which of a tensor's elements were touched.

    ``spans`` are half-open ranges of elements in storage order; ``opaque`` counts the elements of
    views that are not one such range.
    """

    elements: int
    spans: list[tuple[int, int]] = field(default_factory=list)
    opaque: int = 0

    def add(self, view: torch.Tensor) -> None:
        """Touch the elements that a view of the tensor shows."""
        start = view.storage_offset()
        if _is_dense(view):
            self.spans.append((start, start + view.numel()))
        else:
            self.opaque += view.numel()

    @property
    def touched(self) -> int:
        """How many elements were touched at least once."""
        total, end = 0, 0
        for low, high in sorted(self.spans):
            total += max(0, high - max(low, end))
            end = max(end, high)
        return min(self.elements, total + self.opaque)

    @property
    def repeated(self) -> int:
        """How many touches were of an element touched before."""
        return sum(high - low for low, high in self.spans) + self.opaque - self.touched


@dataclass(kw_only=True)
class Target:
    """One parameter or buffer of the model, and what has been written to it from which tensors."""

    name: str
    dtype: torch.dtype
    is_parameter: bool
    written: Cover
    sources: set[str] = field(default_factory=set)


class WriteWatch:
    """The record of one load: feed the checkpoint through :meth:`feed`, inside the dispatch mode.

    ``casts`` and ``reshapes`` map (tensor, parameter) to (from, to): the dtypes or shapes where they
    differ. ``read`` holds, for each checkpoint tensor that reached a parameter or buffer, which of its
    elements did.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        """Know the model's storages; the model must be built and not yet loaded."""
        self.targets: dict[int, Target] = {}
        self.casts: dict[tuple[str, str], tuple[str, str]] = {}
        self.reshapes: dict[tuple[str, str], tuple[list[int], list[int]]] = {}
        self.read: dict[str, Cover] = {}
        self.feeding: str | None = None
        self._sources: dict[int, frozenset[str]] = {}
        self._given: dict[str, torch.Tensor] = {}
        self._last_item: frozenset[str] = frozenset()
        # A storage's address identifies it only as long as it lives.
        self._alive: list[torch.Tensor] = []
        self._add_targets(model.named_parameters(), is_parameter=True)
        self._add_targets(model.named_buffers(), is_parameter=False)

    def _add_targets(self, named: Iterator[tuple[str, torch.Tensor]], *, is_parameter: bool) -> None:
        for name, tensor in named:
            self._alive.append(tensor)
            target = Target(
                name=name,
                dtype=tensor.dtype,
                is_parameter=is_parameter,
                written=Cover(elements=tensor.numel()),
            )
            self.targets.setdefault(_storage(tensor), target)

    def feed(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """Pass (name, tensor) pairs on to a loader and remember whose storage is whose."""
        for name, tensor in tensors:
            self.feeding = name
            self._given[name] = tensor
            self._sources[_storage(tensor)] = frozenset((name,))
            yield name, tensor

    def observe(self, function: Any, args: tuple[Any, ...], result: Any) -> None:
        """Note one operation: where its data came from and which target it changed."""
        inputs = [tensor for tensor in _flatten(args) if _is_tensor(tensor)]
        sources = frozenset().union(*(self._sources.get(_storage(t), ()) for t in inputs))
        schema = function._schema
        if schema.name == "aten::_local_scalar_dense":
            self._last_item = sources
            return
        mutated = [
            value
            for argument, value in zip(schema.arguments, args, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        written = [tensor for tensor in _flatten(mutated) if _is_tensor(tensor)]
        for tensor in written:
            self._note_write(tensor, sources or self._last_item, args)
        if sources and not written:
            for tensor in _flatten((result,)):
                if _is_tensor(tensor):
                    self._alive.append(tensor)
                    self._sources.setdefault(_storage(tensor), sources)

    def _note_write(self, tensor: torch.Tensor, sources: frozenset[str], args: tuple[Any, ...]) -> None:
        target = self.targets.get(_storage(tensor))
        if target is None:
            self._sources[_storage(tensor)] = sources
            return
        self._last_item = frozenset()
        target.written.add(tensor)
        target.sources |= sources
        value = args[1] if len(args) > 1 and _is_tensor(args[1]) else None
        for name in sources:
            self._note_read(name, value)
            given = self._given[name].dtype
            if given != target.dtype:
                self.casts[name, target.name] = (_dtype(given), _dtype(target.dtype))
            if value is not None and value.shape != tensor.shape:
                self.reshapes[name, target.name] = (list(value.shape), list(tensor.shape))

    def _note_read(self, name: str, value: torch.Tensor | None) -> None:
        given = self._given[name]
        cover = self.read.setdefault(name, Cover(elements=given.numel()))
        # What was converted or computed on the way no longer tells its part: it counts as the whole.
        is_view = value is not None and _storage(value) == _storage(given)
        cover.add(value if value is not None and is_view else given)


def watch_class() -> Any:
    """The dispatch mode that hands every operation to a :class:`WriteWatch` (needs torch, so made late)."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Mode(TorchDispatchMode):  # type: ignore[misc, unused-ignore]
        def __init__(self, watch: WriteWatch) -> None:
            super().__init__()
            self._watch = watch

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            del types
            result = func(*args, **(kwargs or {}))
            self._watch.observe(func, args, result)
            return result

    return Mode


def _flatten(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flatten(value)
        else:
            yield value


def _is_tensor(value: object) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether the elements fill one range of the storage without gap or overlap, in any order."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True
