"""The real resolver: what fits together is locked, and what does not is a result with its reason.

Slow for the package index: some seconds a resolution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qvlfp8 import locks
from tests.integration.conftest import Sandbox

Says = Callable[[tuple[int, str, str], int, Sequence[str]], None]


def test_versions_that_exclude_each_other_are_a_result(sandbox: Sandbox, says: Says) -> None:
    name = "vllm-0.13.0-transformers-5"
    matrix = sandbox.root / "matrix.yaml"
    line = "  - {vllm: 0.13.0, transformers: 4.57.6, default: true}\n"
    added = "  - {vllm: 0.13.0, transformers: 5.5.4, label: transformers-5}\n"
    row = (
        f"cells:\n  - {{recipes: lm-fp8, quantize: modelopt-0.47.0, models: seeing-untied, serve: {name}}}\n"
    )
    text = matrix.read_text()
    matrix.write_text(text.replace(line, line + added).replace("\ncells:\n", f"\n{row}"))
    says(sandbox.run("lock", name, f"{name}.cuda"), 6, [f"{name} does not resolve", "shows: {resolve"])
    project = sandbox.project()
    for target in ("cpu", "cuda"):
        lock = locks.find_lock(project.matrix, project.environments[name], target)
        assert lock.unresolved is not None
        assert "transformers>=4.56.0,<5" in lock.unresolved
        assert str(sandbox.root) not in lock.path.read_text()
    says(sandbox.run("build", name), 6, [f"{name} does not resolve: Because", "matrix.yaml"])
    printed = ["not expected", "qvlfp8 expect update", "--stage resolve --finding does-not-resolve"]
    says(sandbox.run("matrix", "--only", name), 1, printed)
    matrix.write_text(
        matrix.read_text().replace(
            "expectations:\n",
            "expectations:\n"
            f'  - {{cells: "*/{name}", shows: {{resolve: does-not-resolve}}, reason: it wants 4}}\n',
        )
    )
    says(sandbox.run("lock", name), 0, ["does not resolve"])
    says(sandbox.run("matrix", "--only", name), 0, ["1 fail"])


def test_an_environment_without_a_pin_takes_what_the_resolver_takes(sandbox: Sandbox, says: Says) -> None:
    """The trap of vLLM before 0.12, whose metadata has no ceiling."""
    name = "vllm-0.10.2-unpinned"
    project = sandbox.project()
    lock = locks.path_of(project.matrix, project.environments[name])
    lock.unlink()
    says(sandbox.run("lock", name), 0, [f"✓ {name}"])
    versions = locks.read_lock(project.matrix, project.environments[name]).versions()
    assert versions["vllm"] == "0.10.2"
    assert int(versions["transformers"].split(".")[0]) >= 5
