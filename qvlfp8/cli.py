"""``qvlfp8 …``: thin commands; what they import, they import when they run."""

from __future__ import annotations

import gc
import io
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal, NoReturn

import typer

from qvlfp8 import __version__
from qvlfp8.errors import EXIT_INTERRUPTED, EXIT_UNEXPECTED, QvlError
from qvlfp8.truth import TRUTH_PER_TASK

app = typer.Typer(
    name="qvlfp8",
    help="Which FP8 checkpoint of a vision-language model loads, speaks, sees and stays right in which vLLM?",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

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


def _version(show: bool) -> None:
    if show:
        typer.echo(f"qvlfp8 {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    _show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def matrix(
    matrix_file: MatrixOption = MATRIX,
    store: StoreOption = None,
    only: OnlyOption = None,
    everything: AllOption = False,
    again: Annotated[bool, typer.Option("--again", help="Execute steps that have a record already.")] = False,
    without_evidence: Annotated[
        bool,
        typer.Option(
            "--without-evidence", help="Execute what only a committed record of another machine answers, too."
        ),
    ] = False,
    jobs: JobsOption = None,
    engine: EngineOption = "venv",
    verbose: VerboseOption = False,
) -> None:
    """Execute what is not executed yet, and print the compatibility matrix."""
    from qvlfp8.commands.matrix import run_matrix

    run_matrix(
        matrix_file,
        store,
        only=only or [],
        everything=everything,
        again=again,
        evidence=not without_evidence,
        jobs=jobs,
        engine=engine,
        verbose=verbose,
    )


@app.command()
def plan(
    matrix_file: MatrixOption = MATRIX,
    store: StoreOption = None,
    only: OnlyOption = None,
    everything: AllOption = False,
    as_json: JsonOption = False,
    as_github: Annotated[
        bool,
        typer.Option("--github", help="Print GitHub's job matrix instead: a job for each image on a GPU."),
    ] = False,
) -> None:
    """List cells, their steps, what is cached, and what is left out and why. Executes nothing."""
    from qvlfp8.commands.plan import show_github, show_plan

    if as_github:
        show_github(matrix_file, store, only=only or [], everything=everything)
        return
    show_plan(matrix_file, store, only=only or [], everything=everything, as_json=as_json)


@app.command()
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


@app.command()
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


@app.command()
def table(
    matrix_file: MatrixOption = MATRIX,
    store: StoreOption = None,
    only: OnlyOption = None,
    everything: AllOption = False,
    form: Annotated[
        Literal["terminal", "markdown", "json"], typer.Option("--format", help="How to print it.")
    ] = "terminal",
) -> None:
    """Print the compatibility matrix from the records there are. Executes nothing."""
    from qvlfp8.commands.matrix import show_table

    show_table(matrix_file, store, only=only or [], everything=everything, form=form)


@app.command()
def diff(
    before: Annotated[
        str, typer.Argument(metavar="A", help="A store, a results folder, or a git revision of this project.")
    ],
    after: Annotated[str, typer.Argument(metavar="B", help="The same, later.")],
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    as_json: JsonOption = False,
    matrix_file: MatrixOption = MATRIX,
) -> int:
    """Say what improved, regressed, is new, gone or stale in B; ends with 1 on a regression."""
    from qvlfp8.commands.diff import show_difference

    return show_difference(matrix_file, before, after, as_markdown=as_markdown, as_json=as_json)


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
def images(
    prune: Annotated[bool, typer.Option("--prune", help="Remove ours that are out of date.")] = False,
    as_json: JsonOption = False,
    matrix_file: MatrixOption = MATRIX,
    store: StoreOption = None,
) -> None:
    """List the images that there are: size, age, for how many cells, and whether they are up to date."""
    from qvlfp8.commands.images import show_images

    show_images(matrix_file, store, remove=prune, as_json=as_json)


@app.command()
def truth(
    environment: Annotated[
        str | None,
        typer.Option("--environment", help="A serve environment for a GPU, instead of vLLM's CPU build."),
    ] = None,
    per_task: Annotated[
        int, typer.Option("--per-task", min=1, help="Questions of each task that every checkpoint is asked.")
    ] = TRUTH_PER_TASK,
    matrix_file: MatrixOption = MATRIX,
    store: StoreOption = None,
    engine: EngineOption = "venv",
    verbose: VerboseOption = False,
) -> None:
    """Plant faults in good checkpoints and see which stage catches each."""
    from qvlfp8.commands.truth import run_truth

    run_truth(matrix_file, store, environment=environment, per_task=per_task, engine=engine, verbose=verbose)


reference_app = typer.Typer(
    help="The trained reference model, and pictures with captions like those it has learned.",
    rich_markup_mode=None,
)
app.add_typer(reference_app, name="reference")

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


@app.command()
def bundle(
    environments: Annotated[
        list[str],
        typer.Argument(help="Environments, such as vllm-0.26.0; of one that quantizes only its packages."),
    ],
    have: Annotated[
        Path, typer.Option("--have", help="What `pip list --format=freeze` said on the GPU host.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Where the bundle goes; must not exist yet.")],
    split: Annotated[
        str | None, typer.Option("--split", metavar="SIZE", help="The most of a piece, such as 58M.")
    ] = None,
    only: OnlyOption = None,
    everything: AllOption = False,
    jobs: Annotated[bool, typer.Option("--jobs/--no-jobs", help="Bring what is to be run as well.")] = True,
    packages: Annotated[
        bool, typer.Option("--packages/--no-packages", help="Bring the environments' packages.")
    ] = True,
    truth: Annotated[
        bool, typer.Option("--truth", help="Bring the runs of `qvlfp8 truth` for these environments as well.")
    ] = False,
    time_limit: Annotated[float, typer.Option("--time-limit", min=1, help="Seconds, for each job.")] = 300.0,
    matrix_file: MatrixOption = MATRIX,
    store: StoreOption = None,
) -> None:
    """Pack what a GPU host without network needs to run the cells of serve environments."""
    from qvlfp8.commands.bundle import make_bundle

    make_bundle(
        matrix_file, store, environments, have=have, out=out, split=split, only=only or [],
        everything=everything, jobs=jobs, truth=truth, packages=packages, time_limit=time_limit,
    )  # fmt: skip


@app.command("run-bundle", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def run_bundle(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="The bundle's folder, its pieces laid over each other.")],
) -> int:
    """Run a bundle here, as its start.sh does; `--help` after the folder lists its options."""
    from qvlfp8.commands.bundle import run_bundle as run

    return run(folder, context.args)


contract_app = typer.Typer(
    help="What each vLLM does with a checkpoint, recorded from its loader: what `explain` knows.",
    rich_markup_mode=None,
)
app.add_typer(contract_app, name="contract")

EnvironmentsArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[ENVIRONMENT]...", help="Serve environments [default: all].")
]
ContractsOption = Annotated[
    Path | None, typer.Option("--contracts", help="Where contracts are [default: in the package].")
]
OnlyShownOption = Annotated[
    Literal["probes", "samples"] | None,
    typer.Option("--only", help="The probes of Qwen2.5-VL, or the samples of other kinds [default: both]."),
]


@contract_app.command("record")
def contract_record(
    environments: EnvironmentsArgument = None,
    matrix_file: MatrixOption = MATRIX,
    store: StoreOption = None,
    contracts: ContractsOption = None,
    only: OnlyShownOption = None,
) -> None:
    """Show the probes to the loader of each environment, and write its contract. Minutes for each."""
    from qvlfp8.commands.contract import Shown, run_record

    run_record(matrix_file, store, environments or [], contracts, Shown(only) if only else None)


@contract_app.command("check")
def contract_check(
    environments: EnvironmentsArgument = None,
    matrix_file: MatrixOption = MATRIX,
    store: StoreOption = None,
    contracts: ContractsOption = None,
    only: OnlyShownOption = None,
) -> None:
    """Show the probes again, and fail where vLLM does otherwise than its contract says."""
    from qvlfp8.commands.contract import Shown, run_check

    run_check(matrix_file, store, environments or [], contracts, Shown(only) if only else None)


results_app = typer.Typer(help="Committed records, in results/.", rich_markup_mode=None)
app.add_typer(results_app, name="results")


@results_app.command("import")
def results_import(
    folder: Annotated[Path, typer.Argument(help="The folder `out` that a bundle's run left.")],
    matrix_file: MatrixOption = MATRIX,
    store: StoreOption = None,
) -> None:
    """Take in what a bundle's run brought back, after checking its digests."""
    from qvlfp8.commands.results import import_results

    import_results(matrix_file, store, folder)


@results_app.command("merge")
def results_merge(
    stores: Annotated[list[Path], typer.Argument(metavar="STORE...", help="Stores that machines filled.")],
    store: Annotated[Path, typer.Option("--store", help="The store that takes them in.")],
    fill: Annotated[
        list[Path] | None,
        typer.Option(
            "--fill",
            metavar="STORE",
            help="Stands in for what the others did not settle; may be repeated.",
        ),
    ] = None,
) -> None:
    """Copy the records of several stores into one, unless they contradict each other."""
    from qvlfp8.commands.results import merge_results

    merge_results(stores, fill=fill or [], store=store)


@results_app.command("keep")
def results_keep(
    matrix_file: MatrixOption = MATRIX,
    store: StoreOption = None,
) -> None:
    """Keep what this machine has quantized, inspected and shown to vLLM's loader, as lines in results/."""
    from qvlfp8.commands.keep import keep_results

    keep_results(matrix_file, store)


@results_app.command("report")
def results_report(
    matrix_file: MatrixOption = MATRIX,
    store: StoreOption = None,
) -> None:
    """Write results/README.md: every run's marks, and the pictures and answers that prove them."""
    from qvlfp8.commands.results import write_report

    write_report(matrix_file, store)


@app.command("nightly-issue")
def nightly_issue(
    diff: Annotated[Path, typer.Argument(metavar="DIFF", help="What `qvlfp8 diff A B --json` printed.")],
    out: Annotated[Path, typer.Option("--out", help="The folder for title.txt and body.md.")],
    run: Annotated[str, typer.Option("--run", metavar="URL", help="The run that found the regressions.")],
) -> None:
    """Write the issue that a nightly run opens for regressions."""
    from qvlfp8.commands.nightly import write_issue

    write_issue(diff, out, run=run)


expect_app = typer.Typer(help="What matrix.yaml expects of cells.", rich_markup_mode=None)
app.add_typer(expect_app, name="expect")


@expect_app.command("update")
def expect_update(
    only: Annotated[
        list[str] | None,
        typer.Argument(metavar="[GLOB]...", help="Cells, as of --only [default: the default slice]."),
    ] = None,
    everything: AllOption = False,
    stage: Annotated[str | None, typer.Option("--stage", help="Only what this stage shows.")] = None,
    finding: Annotated[str | None, typer.Option("--finding", metavar="ID", help="Only this finding.")] = None,
    reason: Annotated[
        str | None, typer.Option("--reason", help="Why it shows; a finding that nobody expected needs it.")
    ] = None,
    link: Annotated[str | None, typer.Option("--link", metavar="URL", help="Of the issue.")] = None,
    flaky: Annotated[
        bool, typer.Option("--flaky", help="It may show or not; needs --link to the issue that says why.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would change.")] = False,
    matrix_file: MatrixOption = MATRIX,
    store: StoreOption = None,
) -> None:
    """Make matrix.yaml expect what the records show: narrow or remove what no longer shows, add what does."""
    from qvlfp8.commands.expect import update_expectations

    update_expectations(
        matrix_file, store, only or [], everything=everything, stage=stage, finding=finding, reason=reason,
        link=link, flaky=flaky, dry_run=dry_run,
    )  # fmt: skip


@app.command()
def recipes(
    as_json: JsonOption = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print docs/recipes.md.")] = False,
    matrix_file: MatrixOption = MATRIX,
) -> None:
    """Say what each recipe quantizes, and under which names it is known."""
    from qvlfp8.commands.recipes import show_recipes

    show_recipes(matrix_file, as_json=as_json, as_markdown=as_markdown)


@app.command()
def findings(
    name: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="One finding's id [default: list them all].")
    ] = None,
    as_json: JsonOption = False,
    as_markdown: Annotated[
        bool,
        typer.Option("--markdown", help="Print docs/findings.md: all of them, by the committed records."),
    ] = False,
    matrix_file: MatrixOption = MATRIX,
    store: StoreOption = None,
) -> None:
    """Say what findings mean, how each is mended, and in which vLLM the records here show it."""
    if as_markdown:
        from qvlfp8.project import Project
        from qvlfp8.report.findings_page import page

        print(page(Project.open(matrix_file, store)), end="")
        return
    from qvlfp8.commands.findings import show_findings

    show_findings(matrix_file, store, name, as_json=as_json)


@app.command()
def diagnose(
    log: Annotated[
        str, typer.Argument(metavar="LOGFILE", help="vLLM's log or traceback; - for standard input.")
    ],
    as_json: JsonOption = False,
) -> int:
    """Name the finding behind a log of vLLM; ends with 0 if it is known, with 1 if it is not."""
    from qvlfp8.commands.diagnose import show_diagnosis

    return show_diagnosis(log, as_json=as_json)


@app.command()
def publish(
    out: Annotated[Path, typer.Option("--out", help="The site's folder; one of ours is replaced.")] = Path(
        "site"
    ),
    base: Annotated[
        str, typer.Option("--base", metavar="URL", help="Where it will stand, for the links of its feed.")
    ] = "",
    results: Annotated[
        Path | None,
        typer.Option("--results", help="Committed records [default: results/ beside the matrix]."),
    ] = None,
    matrix_file: MatrixOption = MATRIX,
    store: StoreOption = None,
) -> None:
    """Write the static site: the matrix, each cell and finding, badges, feed and API. Executes nothing."""
    from qvlfp8.commands.publish import run_publish

    run_publish(matrix_file, store, results, out, base=base)


@app.command()
def schema(
    name: Annotated[Literal["matrix", "recipe", "record", "github-plan", "site"], typer.Argument()],
) -> None:
    """Print the JSON Schema of matrix.yaml, a recipe, a record, `plan --github`, or the site's API."""
    from qvlfp8.commands.schema import show_schema

    show_schema(name)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code (see :data:`qvlfp8.errors.EXIT_CODES`)."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    # Plans and records are many objects that live until the end: collecting often finds nothing in them.
    gc.set_threshold(200_000, 20, 100)
    code = _run(arguments)
    if code == EXIT_INTERRUPTED:
        print("interrupted; what was finished is kept, and the same command continues", file=sys.stderr)
    return code


def _run(arguments: list[str] | None) -> int:
    try:
        code: Any = app(args=arguments, standalone_mode=False)
    except QvlError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except typer.Exit as ended:
        return ended.exit_code
    except typer.TyperException as error:
        print(f"error: {error.format_message()}\n  mend: see `qvlfp8 --help`", file=sys.stderr)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        print(
            "interrupted; what was finished is kept, and the same command continues",
            file=sys.stderr,
        )
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return EXIT_UNEXPECTED
    return code if isinstance(code, int) else 0
