"""The stage `resolve`: packages that do not fit together are a result, of the cells that need them."""

from __future__ import annotations

from pathlib import Path

import pytest

from qvlfp8 import locking, locks
from qvlfp8.engine.uv import Uv, _unresolved
from qvlfp8.environments import Environment
from qvlfp8.errors import (
    BuildError,
    IndexUnreachableError,
    LockError,
    PackageMissingError,
    UnresolvableError,
)
from qvlfp8.locks import Request
from qvlfp8.project import Project
from qvlfp8.report.render import to_json, to_markdown
from qvlfp8.wanted import wanted
from tests.unit.factory import MATRIX, open_project

REASON = (
    "Because a depends on b<5 and you require b==5, we can conclude that your requirements are unsatisfiable."
)
LABELLED = MATRIX.replace(
    "  - {modelopt: 0.47.0,",
    "  - {modelopt: 0.41.0, transformers: 5.5.4, label: newer}\n  - {modelopt: 0.47.0,",
)
EXPECTED = LABELLED.replace(
    "expectations: []",
    "expectations:\n"
    '  - {cells: "*/modelopt-0.41.0-newer/*", shows: {resolve: does-not-resolve}, reason: a wants b<5}',
)


def unresolve(project: Project, name: str) -> Environment:
    """Make an environment one that does not resolve."""
    environment = project.environments[name]
    for target in locks.targets_of(environment):
        path = locks.path_of(project.matrix, environment, target)
        path.write_text(locks.request(project.matrix, environment, target).unresolved(REASON))
    return environment


@pytest.fixture(params=["quantize", "serve"])
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Project:
    made = open_project(tmp_path, LABELLED)
    unresolve(made, {"quantize": "modelopt-0.41.0-newer", "serve": "vllm-0.13.0"}[request.param])
    return made


def test_its_cells_fail_there_and_are_blocked_after(project: Project) -> None:
    cells = project.matrix.cells
    views = project.views(project.plan(cells, project.locks(cells)))
    failed = [view for view in views if view.stages[0].status == "fail"]
    serves = any(view.cell.quantize.label is None for view in failed)
    assert len(failed) == (3 if serves else 2)
    for view in failed:
        resolve, *rest = view.stages
        assert resolve.findings == ("does-not-resolve",)
        assert REASON in resolve.because
        # What an environment quantized does not depend on whether another can serve it.
        blocked = {stage.stage for stage in rest if stage.status == "blocked"}
        assert blocked == ({"preflight"} if serves else {"quantize", "inspect", "preflight"})
        assert view.decisive == resolve
    assert all(view.stages[0].status == "pass" for view in views if view not in failed)
    assert "does-not-resolve" in to_markdown(views)
    assert '"status": "blocked"' in to_json(views)


def test_nothing_that_needs_it_is_executed(project: Project) -> None:
    cells = project.matrix.cells
    plan = project.plan(cells, project.locks(cells))
    never = {step.digest for step in plan.steps.values() if step.unresolved}
    assert never
    from qvlfp8.survey import survey

    chosen = wanted(
        plan, survey(plan, project.lookup), devices={"cpu"}, again=True,
        intact=lambda *_: True, built=lambda _: False,
    )  # fmt: skip
    assert chosen
    assert not [step for step in chosen if step.digest in never or never.intersection(step.needs)]


def test_it_is_a_surprise_unless_it_is_expected_and_the_other_way_round(tmp_path: Path) -> None:
    def surprises(project: Project) -> list[str]:
        cells = project.cells(only=["*-newer"], everything=True)
        views = project.views(project.plan(cells, project.locks(cells)))
        return [
            text for view in views for stage, text in project.surprises(view) if text and stage == "resolve"
        ]

    unexpected = open_project(tmp_path / "unexpected", LABELLED)
    unresolve(unexpected, "modelopt-0.41.0-newer")
    assert all("does-not-resolve" in text for text in surprises(unexpected))
    assert surprises(unexpected)
    expected = open_project(tmp_path / "expected", EXPECTED)
    assert all("did not show does-not-resolve" in text for text in surprises(expected))
    assert surprises(expected)
    environment = unresolve(expected, "modelopt-0.41.0-newer")
    assert not surprises(expected)
    assert expected.matrix.expects_unresolved(environment)
    assert not expected.matrix.expects_unresolved(expected.environments["vllm-0.13.0"])


def test_it_cannot_be_installed_and_says_why(tmp_path: Path) -> None:
    project = open_project(tmp_path, LABELLED)
    environment = unresolve(project, "modelopt-0.41.0-newer")
    lock = locks.find_lock(project.matrix, environment)
    assert lock.unresolved == REASON
    assert not lock.versions()
    with pytest.raises(LockError, match=r"modelopt-0\.41\.0-newer\.cuda does not resolve: Because a depends"):
        locks.read_lock(project.matrix, environment, "cuda")


class Resolver(Uv):
    """Resolves everything but what names b."""

    def __init__(self) -> None:
        pass

    def create(self, folder: Path, *, python: str, log: Path) -> None:
        pass

    def compile(self, asked: Request, *, builder: Path, scratch: Path) -> str:
        if "b==5" in asked.requires:
            raise UnresolvableError(REASON)
        return "a==1\n"


def test_what_does_not_resolve_is_written_down_and_the_others_are_locked(tmp_path: Path) -> None:
    project = open_project(tmp_path, LABELLED.replace("label: newer}", "label: newer, requires: [b==5]}"))
    for path in (tmp_path / "containers" / "locks").iterdir():
        path.unlink()
    said: list[str] = []
    failed = locking.lock(project.matrix, locking.choose(project.matrix, []), Resolver(), said.append)
    assert [environment.id for environment in failed] == ["modelopt-0.41.0-newer"] * 2
    assert [line[0] for line in said] == ["✓", "✓", "✗", "✗", *["✓"] * 6]
    assert not locking.outdated(project.matrix)
    for name, (environment, target) in locking.of_matrix(project.matrix).items():
        lock = locks.find_lock(project.matrix, environment, target)
        assert (lock.unresolved == REASON) == ("-newer" in name)


def test_a_reason_survives_being_wrapped() -> None:
    request = Request(
        environment="e", python="3.11", platform="p", exclude_newer="n", requires=(), override=(), exclude=()
    )
    text = request.unresolved(REASON * 3)
    assert max(map(len, text.splitlines())) < 110
    assert all(line.startswith("#") for line in text.splitlines())


@pytest.mark.parametrize("cut", ["header", "marker", "pins"])
def test_a_damaged_lock_is_no_pass(tmp_path: Path, cut: str) -> None:
    project = open_project(tmp_path)
    environment = project.environments["vllm-0.13.0"]
    request = locks.request(project.matrix, environment)
    text = {
        "header": request.header(),
        "marker": request.unresolved(""),
        "pins": request.header() + "# via\n",
    }[cut]
    locks.path_of(project.matrix, environment).write_text(text)
    with pytest.raises(LockError, match="damaged: it pins nothing"):
        locks.find_lock(project.matrix, environment)


def test_a_marker_with_blanks_behind_it_is_a_marker(tmp_path: Path) -> None:
    project = open_project(tmp_path)
    environment = project.environments["vllm-0.13.0"]
    path = locks.path_of(project.matrix, environment)
    path.write_text(
        locks.request(project.matrix, environment).unresolved(REASON).replace("resolve:\n", "resolve: \n")
    )
    assert locks.find_lock(project.matrix, environment).unresolved == REASON


@pytest.mark.parametrize("folder", [True, False])
def test_a_lock_that_cannot_be_read_says_so(tmp_path: Path, folder: bool) -> None:
    project = open_project(tmp_path)
    path = locks.path_of(project.matrix, project.environments["vllm-0.13.0"])
    path.unlink()
    path.mkdir() if folder else path.write_bytes(b"\xff\xfe")
    with pytest.raises(LockError, match="cannot be read"):
        project.locks(project.matrix.cells)


def test_a_lock_named_twice_is_made_once(tmp_path: Path) -> None:
    project = open_project(tmp_path)
    assert len(locking.choose(project.matrix, ["vllm-0.13.0", "vllm-0.13.0"])) == 1


def test_what_was_not_run_is_not_excused_by_an_environment_that_resolves(tmp_path: Path) -> None:
    project = open_project(tmp_path, EXPECTED)
    cells = project.cells(only=["*-newer"], everything=True)
    (view, *_) = project.views(project.plan(cells, project.locks(cells)))
    found = {stage: text for stage, text in project.surprises(view) if text}
    assert {"resolve", "quantize", "inspect"} <= found.keys()


UNSATISFIABLE = (
    "error: No solution found when resolving dependencies:\n"
    "  cause: Because a needs b<5 and you require b==5."
)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (UNSATISFIABLE, UnresolvableError),
        (
            f"{UNSATISFIABLE}\nhint: Packages were unavailable because the network was disabled",
            IndexUnreachableError,
        ),
        (f"{UNSATISFIABLE} a was not found in the cache", IndexUnreachableError),
        (f"{UNSATISFIABLE} received 401 Unauthorized for https://index.example/a", IndexUnreachableError),
        (f"{UNSATISFIABLE} Because a was not found in the package registry", PackageMissingError),
        ("error: something else", BuildError),
    ],
)
def test_only_what_an_index_says_of_versions_is_a_result(said: str, kind: type[Exception]) -> None:
    first = PackageMissingError("x") if "registry" in said else BuildError("x")
    error = _unresolved(said, first)
    assert type(error) is kind
    assert isinstance(error, UnresolvableError) == (str(error) == "Because a needs b<5 and you require b==5.")


def test_offline_nothing_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_OFFLINE", "1")
    assert type(_unresolved(UNSATISFIABLE, BuildError("x"))) is IndexUnreachableError
