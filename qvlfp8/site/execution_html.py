"""An execution's section of a cell's page as HTML: its stages, and the circumstances of its record. Pure.

Made here and not by a template, as :mod:`qvlfp8.site.pieces` is: most of the site's text is this.
"""

from __future__ import annotations

from collections.abc import Iterator

from qvlfp8.site.cell_view import Execution, StageShown, TaskRow
from qvlfp8.site.pieces import commands, escaped, finding, status, values

__all__ = ["section"]

_RUN = "run of vLLM"


def section(run: Execution, baseline: str | None, root: str) -> str:
    """The section; ``baseline`` is the file name of the unquantized model's record, if there is one."""
    return "".join(_section(run, baseline, root))


def _section(run: Execution, baseline: str | None, root: str) -> Iterator[str]:
    yield f'<section class="execution" aria-label="{escaped(run.title)}">\n'
    if len(run.stages) > 1:
        earlier = ' <span class="muted">† by an earlier worker</span>' if run.earlier else ""
        yield f"<h3>{escaped(run.title)}{earlier}</h3>"
    said = ""
    for stage in run.stages:
        # What a run says at several stages in a row stands at the first of them.
        yield from _stage(stage, stage.because if stage.because != said else "", root)
        said = stage.because
    if run.facts or run.log or run.record:
        yield from _circumstances(run, baseline, root)
    yield "</section>\n"


def _stage(stage: StageShown, because: str, root: str) -> Iterator[str]:
    yield f'<div class="stage" id="{stage.stage}">\n<h3>{stage.stage} {status(stage.status)}</h3>\n'
    if because:
        yield f'<p class="because">{commands(because)}</p>'
    for name, text in stage.findings:
        yield f'<div class="cause">{finding(name, root)}<pre class="wrap">{escaped(text)}</pre></div>\n'
    if stage.notes:
        yield f'<p class="small">Noted: {", ".join([finding(name, root) for name in stage.notes])}</p>'
    if stage.tasks:
        tasks = "".join([_task(task) for task in stage.tasks])
        yield (
            f'<div class="scroll" tabindex="0" role="region" aria-label="Tasks of stage {stage.stage}">'
            f"{_TASKS}\n<tbody>{tasks}</tbody></table></div>\n"
        )
    yield f"{values(stage.values)}\n</div>\n"


_TASKS = (
    '<table class="values"><thead><tr><th scope="col">task</th><th scope="col" class="number">asked</th>'
    '<th scope="col" class="number">right</th><th scope="col" class="number">BF16 right</th>'
    '<th scope="col" class="number">as BF16</th></tr></thead>'
)


def _task(task: TaskRow) -> str:
    numbers = (str(task.asked), task.accuracy, task.bf16, task.agreement)
    told = "".join([f'<td class="number">{escaped(number)}</td>' for number in numbers])
    return f'<tr><th scope="row">{escaped(task.task)}</th>{told}</tr>'


def _circumstances(run: Execution, baseline: str | None, root: str) -> Iterator[str]:
    ran = run.title == _RUN
    summary = "Locks" if run.title == "resolve" else "Environment, hardware, time, log"
    yield f'<details class="circumstances"{" open" if ran else ""}><summary>{summary}</summary>\n'
    yield f"{values(run.facts)}\n"
    if run.log:
        yield (
            f'<p class="small muted">{escaped(run.log_title)}</p>'
            f'<pre class="wrap log" tabindex="0" aria-label="Log">{escaped(run.log)}</pre>'
        )
    repeat = escaped(run.repeat)
    yield f'<p class="small muted">Repeat this alone</p><pre class="wrap"><code>{repeat}</code></pre>\n'
    if run.record:
        yield f'<p class="small"><a href="{root}records/{escaped(run.record)}">The record (JSON)</a>'
        if ran and baseline:
            yield f' · <a href="{root}records/{escaped(baseline)}">that of BF16 in the same vLLM</a>'
        yield "</p>"
    yield "</details>\n"
