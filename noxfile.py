"""The front door. Every session is one call into qvlfp8 or one tool; `nox -l` lists them.

`nox -s matrix` makes its own environment from uv.lock; nothing has to be installed but nox and uv.
"""

from __future__ import annotations

import os
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["matrix"]

ROOT = Path(__file__).parent
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))


def install(session: nox.Session, *groups: str, extra: str | None = None) -> None:
    """Put the locked project, dependency groups and an extra into the session's environment."""
    # VIRTUAL_ENV would make uv warn about another project's environment.
    session.run_install(
        "uv", "sync", "--quiet", "--locked", "--compile-bytecode", "--inexact",
        *(f"--group={group}" for group in groups),
        *([f"--extra={extra}"] if extra else []),
        f"--python={session.virtualenv.location}/bin/python",
        env={
            "UV_PROJECT_ENVIRONMENT": session.virtualenv.location,
            # A company's own CA is in the system's store, which uv does not look at by itself.
            "UV_SYSTEM_CERTS": os.environ.get("UV_SYSTEM_CERTS", "true"),
        },
        silent=False,
    )  # fmt: skip


def run(session: nox.Session, *command: str, **variables: str) -> None:
    """Run a command of the session's environment; on Ctrl-C let it keep what is finished."""
    # Kept, what pytest rewrites (its plugins above all, for seconds) is not rewritten in every process.
    env = {"PYTHONPATH": None, "PYTHONDONTWRITEBYTECODE": None, **variables}
    session.run(*command, env=env, interrupt_timeout=20.0, terminate_timeout=10.0)


@nox.session
def matrix(session: nox.Session) -> None:
    """Execute the compatibility matrix, print it, and assert it: -- [--engine docker|ray]."""
    # An installed extra stays: whoever runs on a cluster has it from then on.
    install(session, "test", extra="ray" if "ray" in session.posargs else None)
    run(session, "qvlfp8", "matrix", *session.posargs)
    run(session, "pytest", "-q", "tests/compat", *_compat_options(session.posargs))


def _compat_options(options: list[str]) -> list[str]:
    """The options of `qvlfp8 matrix` that say which cells; the tests assert the same ones."""
    kept: list[str] = []
    for index, option in enumerate(options):
        if option == "--all" or option.startswith(("--only=", "--store=", "--matrix=")):
            kept.append(option)
        elif option in {"--only", "--store", "--matrix"}:
            kept += options[index : index + 2]
    return kept


@nox.session
def tests(session: nox.Session) -> None:
    """All tests: unit, the matrix, the site in a browser, and integration with real ModelOpt and vLLM."""
    install(session, "test", "browser", "cluster")
    run(session, "pytest", "-q", "tests/unit", "-n", "auto")
    run(session, "qvlfp8", "matrix")
    run(session, "pytest", "-q", "tests/compat")
    # Tests that share a browser, a vLLM or the Docker daemon run one after the other, beside the rest.
    run(session, "pytest", "-q", "tests/browser", "tests/integration", "-n", "auto", *session.posargs)


@nox.session
def unit(session: nox.Session) -> None:
    """The fast tests alone: seconds, nothing but the project installed."""
    install(session, "test")
    run(session, "pytest", "-q", "tests/unit", "-n", "auto", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Fuzz the checkpoint readers, guided by coverage, and with many generated folders: -- [SECONDS]."""
    install(session, "fuzz")
    run(session, "python", "-m", "tests.fuzz.fuzz", *session.posargs)
    run(session, "pytest", "-q", "tests/unit/test_hostile_generated.py", "--hypothesis-profile=thorough")


@nox.session
def survive(session: nox.Session) -> None:
    """Kill drivers, workers, containers, nodes at random; nothing is lost or done twice: -- [--kills N]."""
    install(session, "test", "cluster")
    run(session, "python", "-m", "tests.survive", *session.posargs)


@nox.session
def truth(session: nox.Session) -> None:
    """Plant faults in good checkpoints, and see whether the stages catch every one without a false alarm."""
    install(session)
    run(session, "qvlfp8", "truth", *session.posargs)


@nox.session
def explain(session: nox.Session) -> None:
    """What a checkpoint is, what each vLLM makes of it, the smallest mend: -- CHECKPOINT [--vllm SPEC]."""
    install(session, extra="hub")
    # 1 says that it does not work everywhere, which is an answer.
    command = ["qvlfp8", "explain", *session.posargs]
    session.run(*command, env={"PYTHONPATH": None}, success_codes=[0, 1])


@nox.session
def repair(session: nox.Session) -> None:
    """Mend an FP8 checkpoint without quantizing it again: -- IN OUT [--base MODEL]."""
    install(session)
    run(session, "qvlfp8", "repair", *session.posargs)


@nox.session
def reference(session: nox.Session) -> None:
    """The reference model and a drawn data set: -- model DIR | coco DIR | train | eval."""
    install(session, extra="pictures")
    run(session, "qvlfp8", "reference", *session.posargs)


@nox.session
def publish(session: nox.Session) -> None:
    """Write the static site of all records into site/: -- [--out DIR] [--store DIR] [--base URL]."""
    install(session, extra="pictures")
    run(session, "qvlfp8", "publish", *session.posargs)


@nox.session
def lock(session: nox.Session) -> None:
    """Resolve environments of matrix.yaml into containers/locks/."""
    install(session)
    run(session, "qvlfp8", "lock", *session.posargs)


@nox.session
def base(session: nox.Session) -> None:
    """Make the images' base here with mmdebstrap (no registry needed), and load it into Docker."""
    install(session)
    run(session, "qvlfp8", "base", *session.posargs)


@nox.session
def build(session: nox.Session) -> None:
    """Build environments as images from their locks: -- [ENVIRONMENT ...] [--all]."""
    install(session)
    run(session, "qvlfp8", "build", *session.posargs)


@nox.session
def nightly(session: nox.Session) -> None:
    """What takes long: every cell, the oracle, every contract and many checkpoints, images built twice."""
    install(session, "test", "cluster")
    run(session, "qvlfp8", "matrix", "--all")
    run(session, "pytest", "-q", "tests/compat", "--all")
    run(session, "qvlfp8", "truth")
    run(session, "qvlfp8", "contract", "check")
    modules = [f"tests/integration/test_{module}.py" for module in ("contract", "forms", "repair", "survive")]
    run(session, "pytest", "-q", *modules, "-n", "auto", QVLFP8_TESTS_THOROUGH="1")
    run(session, "qvlfp8", "base")
    run(session, "python", "bench/base.py")
    run(session, "python", "bench/images.py", "--twice")


@nox.session
def contract(session: nox.Session) -> None:
    """What each vLLM's loader does, for `explain`: -- record|check [ENVIRONMENT ...]. Minutes for each."""
    install(session)
    run(session, "qvlfp8", "contract", *(session.posargs or ["check"]))


@nox.session
def lint(session: nox.Session) -> None:
    """Formatting, lint and types; GitHub's workflows and their scripts."""
    install(session, "dev")
    run(session, "ruff", "check")
    run(session, "ruff", "format", "--check")
    run(session, "mypy")
    run(session, "actionlint")


def _add_recipe_session(recipe: str) -> None:
    """`lm-fp8` becomes `quantize-lm`, `vlm-fp8-naive` becomes `quantize-vlm-naive`."""

    def session_of_recipe(session: nox.Session) -> None:
        install(session)
        run(session, "qvlfp8", "quantize", recipe, *session.posargs)

    session_of_recipe.__doc__ = f"Quantize a model of yours with recipe {recipe}: -- --model M --out DIR"
    nox.session(name=f"quantize-{recipe.replace('-fp8', '', 1)}")(session_of_recipe)


for _recipe in RECIPES:
    _add_recipe_session(_recipe)
