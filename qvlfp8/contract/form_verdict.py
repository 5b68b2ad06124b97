"""What a checkpoint is worth in each vLLM, from the records of its form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from qvlfp8.contract.form import Form, Irregular, form_of
from qvlfp8.contract.form_data import FormRecords, forms
from qvlfp8.contract.verdict import Verdict
from qvlfp8.describe import Described
from qvlfp8.findings import KINDS, Finding

__all__ = ["form_verdicts"]

_NOT_LIKE = "not like any checkpoint that was shown to vLLM"


def form_verdicts(described: Described, records: Iterable[FormRecords]) -> list[Verdict]:
    """One for each vLLM that is recorded, in order; unknown of what is irregular or of no known form."""
    known = forms()
    try:
        form = form_of(described)
    except Irregular as error:
        return [_unknown(of, f"{_NOT_LIKE}: {error}") for of in records]
    if (name := known.get(form)) is None:
        return [_unknown(of, f"{_NOT_LIKE}: {_nearest(form, known)}") for of in records]
    return [_verdict(of, name) for of in records]


def _unknown(of: FormRecords, reason: str) -> Verdict:
    return Verdict(environment=of.environment, vllm=of.vllm, worth="unknown", reason=reason)


def _verdict(of: FormRecords, name: str) -> Verdict:
    answer = of.answers.get(name)
    if answer is None:
        return _unknown(of, f"its form ({name}) was not shown to this version")
    findings = tuple(
        Finding(id=kind, summary=KINDS[kind].meaning, evidence=(evidence,))
        for kind, evidence in answer.findings
    )
    return Verdict(
        environment=of.environment,
        vllm=of.vllm,
        worth=answer.worth,
        findings=findings,
        reason=answer.reason,
    )


_SAID: Mapping[str, str] = {
    "tensors": "it is stored as no sample is",
    "names": "its tensors are named as no sample's are",
    "config": "config.json is written as no sample's is",
    "declared": "its quantization is declared as no sample's is",
    "exclusions": "it excludes otherwise than the samples",
}


def _nearest(form: Form, known: Iterable[Form]) -> str:
    """In what it differs from the form that is most like it."""
    alike = [other for other in known if other.family == form.family]
    if not alike:
        return "no sample is of its family"
    nearest = min(alike, key=lambda other: len(list(form.unlike(other))))
    field = next(form.unlike(nearest))
    said, other = getattr(form, field), getattr(nearest, field)
    return f"{_SAID[field]} ({said!r}; the nearest: {other!r})"
