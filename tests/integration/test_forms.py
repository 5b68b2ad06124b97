"""What vLLM's own loader does with forms at other sizes than those of the samples: as the records say.

Each vLLM is asked about some samples, other ones than the next; `nox -s nightly` asks each about all.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qvlfp8.contract import form_data
from qvlfp8.contract.form_recording import answer
from qvlfp8.contract.samples import ARCHITECTURES, Sizes, samples
from tests.contract_cases import Made
from tests.integration.loader import THOROUGH, Hosts

SIZES = (
    Sizes(layers=3, blocks=4, hidden=384, inner=640, vision=240, vision_inner=480, mergers=2),
    Sizes(layers=1, blocks=1, hidden=128, inner=256, vision=80, vision_inner=160, mergers=1),
)

EVERY = 1 if THOROUGH else 11
"""Of so many samples one is asked about at each size; odd, as neighbours differ in what is tied."""

RECORDS = {records.environment: records for records in form_data.load_all()}


def asked(environment: str) -> Iterator[tuple[int, Sizes]]:
    """Positions of samples, and sizes; other samples in each environment and for each of the sizes."""
    first = list(RECORDS).index(environment)
    for number, sizes in enumerate(SIZES):
        start = (first + number) % EVERY
        yield from ((position, sizes) for position in range(start, len(samples()), EVERY))


@pytest.mark.parametrize("environment", RECORDS)
def test_a_form_means_the_same_at_other_sizes(hosts: Hosts, environment: str) -> None:
    records = RECORDS[environment]
    host = hosts.of(environment)
    if host is None:
        pytest.skip(f"{environment} is not built")
    wrong = []
    with host.cases() as ask:
        for position, sizes in asked(environment):
            sample = samples()[position]
            made = Made(files=sample.files(sizes), tensors=sample.tensors(sizes))
            found = answer(sample, ask(made, ARCHITECTURES))
            known = records.answers[sample.name]
            if known.reason and known.reason.startswith("no sample of"):
                # Nor does one of another size work: what it fails with is not kept.
                agrees = found.worth != "works"
            else:
                agrees = (found.worth, ids(found)) == (known.worth, ids(known))
            if not agrees:
                wrong.append((sample.name, sizes, found, known))
    assert not wrong, (len(wrong), wrong[:3])


def ids(found: form_data.Answer) -> list[str]:
    return sorted(kind for kind, _ in found.findings)
