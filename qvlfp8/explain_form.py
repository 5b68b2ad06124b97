"""Explain a checkpoint of a kind that is known by its form, by what vLLM did with a sample of that form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from qvlfp8.contract.form_data import FormRecords
from qvlfp8.contract.form_verdict import form_verdicts
from qvlfp8.describe import Described
from qvlfp8.explain import Explanation, Mend, faults_of

__all__ = ["explain_form"]


def explain_form(described: Described, records: Sequence[FormRecords]) -> Explanation:
    """Explain a checkpoint of another kind, by what vLLM did with a sample of its form.

    ``records`` are of the versions asked for, oldest first.
    """
    found = tuple(form_verdicts(described, records))
    # Headers alone: scales of channels and groups are too many to be read in a second.
    faults = tuple(faults_of(described, values=False))
    explanation = Explanation(described=described, verdicts=found, faults=faults, mend=None)
    if explanation.works or not explanation.known:
        return explanation
    working = [span.words for span in explanation.ranges if span.verdict.worth == "works"]
    where = (
        f"serve it with vLLM {', or '.join(working)}" if working else "no version asked for is known to work"
    )
    return replace(explanation, mend=Mend(served=f"repair does not know its kind; {where}"))
