"""``qvlfp8 lock``, ``base``, ``build`` and ``images``: environments, from their packages to their images."""

from __future__ import annotations

from typing import Annotated

import typer

from qvlfp8.cli.options import MATRIX, JsonOption, MatrixOption, StoreOption


def lock(
    environments: Annotated[
        list[str] | None, typer.Argument(help="Environment ids [default: those out of date].")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Only say which are out of date.")] = False,
    matrix_file: MatrixOption = MATRIX,
) -> None:
    """Resolve environments into hash-locked files in containers/locks/."""
    from qvlfp8.commands.lock import run_lock

    run_lock(matrix_file, environments or [], check=check)


def base(
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Only ask the registry for the digests in containers/base.lock.")
    ] = False,
    matrix_file: MatrixOption = MATRIX,
    store: StoreOption = None,
) -> None:
    """Make the images' base here with mmdebstrap, and load it into Docker."""
    from qvlfp8.commands.images import make_base

    make_base(matrix_file, store, refresh=refresh)


def build(
    environments: Annotated[
        list[str] | None,
        typer.Argument(help="Environment ids, such as vllm-0.26.0 [default: the default slice's]."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", help="Build on this image [default: the one made here, else base.lock's]."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every environment.")] = False,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Build anew, even what is up to date.")
    ] = False,
    matrix_file: MatrixOption = MATRIX,
    store: StoreOption = None,
) -> None:
    """Build environments as images, from their locks."""
    from qvlfp8.commands.images import run_build

    run_build(
        matrix_file, store, environments or [], base=base, everything=everything, no_cache=no_cache
    )  # fmt: skip


def images(
    prune: Annotated[bool, typer.Option("--prune", help="Remove ours that are out of date.")] = False,
    as_json: JsonOption = False,
    matrix_file: MatrixOption = MATRIX,
    store: StoreOption = None,
) -> None:
    """List the images that there are: size, age, for how many cells, and whether they are up to date."""
    from qvlfp8.commands.images import show_images

    show_images(matrix_file, store, remove=prune, as_json=as_json)
