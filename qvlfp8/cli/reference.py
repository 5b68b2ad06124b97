"""``qvlfp8 reference …``: the trained reference model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qvlfp8.cli.options import MATRIX, JsonOption, MatrixOption, StoreOption

reference_app = typer.Typer(
    help="The trained reference model, and pictures with captions like those it has learned.",
    rich_markup_mode=None,
)

OutArgument = Annotated[Path, typer.Argument(metavar="DIR", help="Must not exist yet.")]


@reference_app.command("model")
def reference_model(
    out: OutArgument,
    tied: Annotated[bool, typer.Option("--tied", help="With one matrix for embedding and lm_head.")] = False,
) -> None:
    """Write the shipped model as a folder that transformers and vLLM load."""
    from qvlfp8.commands.reference import make_model

    make_model(out, tied=tied)


@reference_app.command("coco")
def reference_coco(
    out: OutArgument,
    pictures: Annotated[int, typer.Option("--pictures", min=1, help="How many to draw.")] = 64,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the pictures.")] = 0,
) -> None:
    """Draw a small data set in the form of COCO 2017, to calibrate on (--dataset coco:DIR)."""
    from qvlfp8.commands.reference import make_coco

    make_coco(out, pictures=pictures, seed=seed)


@reference_app.command("train")
def reference_train(
    out: Annotated[Path, typer.Option("--out", help="Where the model goes; must not exist yet.")],
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="[default: the shipped plan's]")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="[default: the shipped plan's]")] = None,
    here: Annotated[
        bool,
        typer.Option("--here", help="Use this Python's own torch and transformers, on a GPU host above all."),
    ] = False,
    matrix_file: MatrixOption = MATRIX,
    store: StoreOption = None,
) -> None:
    """Train the reference model again, by the plan of the shipped one."""
    from qvlfp8.commands.reference import run_train

    run_train(matrix_file, store, out, steps=steps, seed=seed, here=here)


@reference_app.command("eval")
def reference_eval(
    checkpoint: Annotated[
        str | None, typer.Argument(help="A checkpoint's folder [default: the shipped model].")
    ] = None,
    per_task: Annotated[int, typer.Option("--per-task", min=1, help="Questions of each task.")] = 64,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the exam.")] = 1001,
    ablations: Annotated[
        bool, typer.Option("--ablations", help="Score it with its tower broken as well.")
    ] = False,
    url: Annotated[
        str | None, typer.Option("--url", help="Score a served model: an OpenAI-compatible server's /v1.")
    ] = None,
    here: Annotated[
        bool, typer.Option("--here", help="Use this Python's own torch and transformers.")
    ] = False,
    as_json: JsonOption = False,
    matrix_file: MatrixOption = MATRIX,
    store: StoreOption = None,
) -> None:
    """Score a checkpoint by its weights (transformers), or a served model by its answers."""
    from qvlfp8.commands.reference import run_eval

    run_eval(
        matrix_file, store, checkpoint, per_task=per_task, seed=seed, ablations=ablations, url=url,
        here=here, as_json=as_json,
    )  # fmt: skip
