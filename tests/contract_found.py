"""Checkpoints on which the static answer and vLLM's loader once disagreed; what vLLM says of them is kept.

``python -m tests.contract_found`` asks every loader that is built, and writes
``unit/data/contract_found.json``.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qvlfp8.contract import forms
from qvlfp8.contract.control import BASES, SCALAR, Header, config
from tests.contract_cases import Made

DATA = Path(__file__).parent / "unit" / "data" / "contract_found.json"

VECTOR: Header = ("BF16", (8,))


def _made(
    base: str,
    *,
    put: Mapping[str, Header] | None = None,
    drop: Sequence[str] = (),
    exclusions: Sequence[str] | None = None,
    files: Mapping[str, Any] | None = None,
) -> Made:
    held = BASES[base]
    tensors = {name: header for name, header in held.tensors.items() if name not in drop} | dict(put or {})
    changed = dict(files or {})
    if exclusions is not None:
        changed["config.json"] = config(tied=held.tied) | {"quantization_config": forms.plain(exclusions)}
    return Made(files={**held.files, **changed}, tensors=tensors)


def _inline(**changed: Any) -> dict[str, Any]:
    whole = forms.plain(("lm_head", "visual", "model", "language_model"))
    return {name: value for name, value in (whole | changed).items() if value is not None}


def _without_numbers() -> dict[str, Any]:
    """config.json as transformers 4 writes it: ``text_config`` has the images' tokens as null."""
    form = next(
        form for form in forms.all_configs() if form.text_rope == "transformers-4" and form.text_architectures
    )
    whole = form.render()
    whole["text_config"] |= {"image_token_id": None, "video_token_id": None}
    return whole | {"quantization_config": forms.plain(("lm_head",))}


FOUND: Mapping[str, Made] = {
    "a tensor with a module's own name": _made("fp8", put={"model.layers.1.self_attn.k_proj": VECTOR}),
    "lm_head is not excluded, and BF16": _made("fp8", exclusions=()),
    "a fused module and one of its parts are excluded": _made(
        "fp8",
        exclusions=(
            "lm_head", "language_model.model.layers.0.mlp.gate_up_proj", "model.layers.0.mlp.gate_proj",
        ),
    ),
    "a tied head under vLLM's name": _made(
        "fp8-tied", put={"language_model.lm_head.weight": BASES["fp8"].tensors["lm_head.weight"]}
    ),
    "a tower's KV scale under the language model's name": _made(
        "fp8", put={"language_model.model.visual.blocks.0.attn.k_proj.k_scale": SCALAR}
    ),
    "unknown words behind a part": _made("fp8", put={"model.layers.1.self_attn.k_proj.model.q_scale":
    SCALAR}),
    "a scale of a part of the tower's excluded attention": _made(
        "excluded", put={"visual.blocks.1.attn.q.input_scale": SCALAR}
    ),
    "a KV scale beside the query": _made("fp8", put={"model.layers.0.self_attn.q_proj.k_scale": SCALAR}),
    "a scale of a tied head": _made("fp8-head-tied", put={"lm_head.input_scale": SCALAR}),
    "a part of a layer's name": _made("fp8", exclusions=("lm_head", "visual", "*.1.mlp*")),
    "a layer's number and no more": _made("fp8", exclusions=("lm_head", "visual", ".1.mlp")),
    "a choice of layers": _made("fp8", exclusions=("lm_head", "visual", "*layers.[01].mlp.down_proj")),
    "a KV cache scale of a layer's own": _made("fp8", put={"model.layers.0.self_attn.attn.k_scale": SCALAR}),
    "a part at the end of another's name": _made("fp8", put={"model.layers.0.mlp.down_proj.q_proj": VECTOR}),
    "a text that has no image's token": _made("fp8", files={"config.json": _without_numbers()}),
    "a scale below a parameter": _made(
        "fp8",
        put={
            "model.embed_tokens.weight.v_scale": SCALAR,
            "model.layers.0.self_attn.k_proj.weight": ("F8_E4M3", (0,)),
        },
    ),
    "a producer": _made(
        "excluded",
        files={
            "config.json": config() | {
                "quantization_config": _inline() | {"producer": {"name": "modelopt", "version": "0.0.0"}}
            },
        },
    ),
    "two files, neither with a KV cache": _made(
        "excluded",
        files={
            "config.json": config() | {
                "quantization_config": _inline(
                    exclude_modules=None, kv_cache_quant_algo=None, kv_cache_scheme=None
                )
            },
            "hf_quant_config.json": {
                "quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head", "visual", "model"]}
            },
        },
    ),
}  # fmt: skip


def main() -> None:
    """Ask every loader that is built."""
    from qvlfp8.findings import diagnose_preflight
    from qvlfp8.project import Project
    from tests.integration.loader import ROOT, Hosts

    said: dict[str, dict[str, list[str]]] = {name: {} for name in FOUND}
    project = Project.open(ROOT / "matrix.yaml")
    with tempfile.TemporaryDirectory() as scratch, contextlib.closing(Hosts(project, Path(scratch))) as hosts:
        for environment in project.matrix.file.serve:
            host = hosts.of(environment.id) if environment.recordable else None
            if host is None:
                continue
            with host.cases() as ask:
                for name, made in FOUND.items():
                    found = diagnose_preflight(ask(made))
                    said[name][environment.id] = sorted({finding.id for finding in found})
            print(environment.id)
    DATA.write_text(json.dumps(said, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
