"""``qvlfp8 explain``, ``repair``, ``quantize`` and ``diagnose``: what one does with a checkpoint in hand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from qvlfp8.cli.options import MATRIX, EngineOption, JsonOption, MatrixOption, StoreOption, VerboseOption


def explain(
    checkpoint: Annotated[str, typer.Argument(help="A folder, or a model of the hub (org/name[@revision]).")],
    vllm: Annotated[
        str | None,
        typer.Option("--vllm", metavar="SPEC", help="Only these versions, such as '>=0.12' [default: all]."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="CHECKPOINT", help="Say how it differs from this one instead."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a checkpoint is, what each vLLM makes of it, and the smallest mend; reads headers and JSON."""
    from qvlfp8.untrusted import collection_paused

    # An answer is awaited, and little of what is made for it is garbage before it is there.
    with collection_paused():
        from qvlfp8.commands.explain import run_explain

        code = run_explain(checkpoint, vllm=vllm, other=against, as_json=as_json)
    raise typer.Exit(code)


def repair(
    source: Annotated[Path, typer.Argument(metavar="IN", help="The checkpoint's folder; only read.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The mended one; must not exist yet.")],
    base: Annotated[
        Path | None,
        typer.Option("--base", help="The unquantized model's folder, for processor and tokenizer files."),
    ] = None,
    without_kv_cache: Annotated[
        bool,
        typer.Option(
            "--without-kv-cache",
            help="Drop the language model's KV cache scales too: some vLLM versions cannot place them.",
        ),
    ] = False,
    wanted: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="SPEC",
            help="It must work in these vLLM versions; the KV cache is given up if need be.",
        ),
    ] = None,
    link: Annotated[
        Literal["copy", "hard"],
        typer.Option("--link", help="Weight files that need no change: copied, or hard-linked."),
    ] = "copy",
    as_json: JsonOption = False,
) -> None:
    """Mend an FP8 checkpoint without quantizing it again; OUT appears whole or not at all."""
    from qvlfp8.commands.repair import run_repair

    run_repair(
        source, out, base=base, without_kv_cache=without_kv_cache, wanted=wanted, link=link, as_json=as_json
    )


def quantize(
    recipe: Annotated[str, typer.Argument(help="A recipe's id, such as lm-fp8.")],
    model: Annotated[
        str,
        typer.Option("--model", help="A folder, or a hub id such as Qwen/Qwen2.5-VL-3B-Instruct."),
    ],
    out: Annotated[Path, typer.Option("--out", help="Where the checkpoint goes; must not exist yet.")],
    environment: Annotated[
        str | None,
        typer.Option(
            "--environment", help="A quantize environment [default: the newest of the recipe's producer]."
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset",
            metavar="SOURCE",
            help="Calibrate on coco:FOLDER (COCO 2017), hub:ORG/NAME[/CONFIG][@REVISION], "
            "data:PATH (parquet, JSON, CSV, arrow) or folder:FOLDER (pictures and a JSONL of prompts) "
            "[default: drawn samples].",
        ),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            "--columns",
            metavar="ROLE=COLUMN,…",
            help="Which column is the image, the text that the user says, and the answer.",
        ),
    ] = None,
    split: Annotated[str | None, typer.Option("--split", help="Of the data set [default: train].")] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", help="How many to calibrate on [default: the recipe's].")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Which ones, in which order [default: the recipe's].")
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", help="Rows of a batch are padded, and calibrated so [default: 1]."),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            "--max-length", help="Tokens of a sample; text is cut there, no picture [default: 2048]."
        ),
    ] = None,
    hf_ptq: Annotated[
        Path | None,
        typer.Option(
            "--hf-ptq",
            metavar="FOLDER",
            help="Have hf_ptq.py of this Model-Optimizer checkout do it, on the same samples (needs a GPU).",
        ),
    ] = None,
    matrix_file: MatrixOption = MATRIX,
    store: StoreOption = None,
    time_limit: Annotated[float, typer.Option("--time-limit", min=1, help="Seconds.")] = 4 * 3600.0,
    engine: EngineOption = "venv",
    verbose: VerboseOption = False,
) -> None:
    """Quantize a model of yours with one recipe, and inspect the result."""
    from qvlfp8.commands.quantize import run_quantize
    from qvlfp8.dataset import Options

    options = Options(
        dataset=dataset, columns=columns, split=split, samples=samples, seed=seed,
        batch_size=batch_size, max_length=max_length,
    )  # fmt: skip
    run_quantize(
        matrix_file, store, recipe, model, out, environment, options, hf_ptq=hf_ptq,
        time_limit=time_limit, engine=engine, verbose=verbose,
    )  # fmt: skip


def diagnose(
    log: Annotated[
        str, typer.Argument(metavar="LOGFILE", help="vLLM's log or traceback; - for standard input.")
    ],
    as_json: JsonOption = False,
) -> int:
    """Name the finding behind a log of vLLM; ends with 0 if it is known, with 1 if it is not."""
    from qvlfp8.commands.diagnose import show_diagnosis

    return show_diagnosis(log, as_json=as_json)
