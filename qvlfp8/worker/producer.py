"""What the producers of checkpoints share: the quantize worker calls each of them in this order.

A producer is a module with these functions. It imports its packages inside them: the worker itself starts in
any environment.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from qvlfp8.quant_cfg import Recipe, Scope
from qvlfp8.worker.audit import Audit


class Batches(Protocol):
    """What is shown while calibrating: keyword arguments of a model's forward pass, each."""

    def __len__(self) -> int:
        """How many there are."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Each in turn, on the model's device."""


class Producer(Protocol):
    """A module that quantizes a loaded model and writes it."""

    def versions(self) -> dict[str, str]:
        """Import the producer's packages and say their versions."""

    def configuration(self, recipe: Recipe, places: Mapping[Scope, str]) -> dict[str, Any]:
        """Say the recipe in the producer's words.

        ``places`` are those of :func:`qvlfp8.worker.audit.places`.

        Raises:
            NotExpressibleError: it has no words for that.
        """

    def quantize(self, model: Any, configuration: Mapping[str, Any], batches: Batches) -> None:
        """Quantize the model where it is, calibrating on the batches."""

    def check(self, model: Any, recipe: Recipe, places: Mapping[Scope, str]) -> Audit:
        """Hold what of the live model is quantized against the recipe.

        Raises:
            Refused: ``recipe-matches-no-module`` or ``recipe-not-honoured``.
        """

    def save(self, model: Any, folder: Path) -> None:
        """Write the quantized model."""
