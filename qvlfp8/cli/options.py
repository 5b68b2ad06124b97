"""Options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

MatrixOption = Annotated[
    Path, typer.Option("--matrix", help="The matrix file; recipes/ and locks lie beside it.")
]
StoreOption = Annotated[
    Path | None, typer.Option("--store", help="Where results are kept [default: .qvlfp8].")
]
OnlyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--only",
        metavar="GLOB",
        help="Only cells whose id, or a part of it, matches; may be repeated.",
    ),
]
AllOption = Annotated[bool, typer.Option("--all", help="Every cell, not just the default slice.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Show long lines whole.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
JobsOption = Annotated[
    int | None,
    typer.Option("--jobs", "-j", min=1, help="Workers at once [default: by CPUs and memory]."),
]

EngineOption = Annotated[
    Literal["venv", "docker"],
    typer.Option("--engine", help="Where steps run: environments made by uv, or hardened containers."),
]

MATRIX = Path("matrix.yaml")
