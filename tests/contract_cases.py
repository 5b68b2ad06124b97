"""Random checkpoints for the contract: every scope and form, and up to four things wrong with the tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import strategies as st

from qvlfp8 import structure
from qvlfp8.contract import forms
from qvlfp8.contract.control import SCALAR, Header, config, preprocessor
from qvlfp8.contract.names import LEAVES, MODULES, spell
from qvlfp8.contract.shapes import different

CONFIGS = list(forms.all_configs())
QUANTIZATIONS = list(forms.all_quantizations())
USUAL = [
    form
    for form in QUANTIZATIONS
    if form.inline is not None
    and form.inline.algorithm == "FP8"
    and form.inline.method
    and form.inline.ignore
]

TYPES = ("BF16", "F16", "F32", "F8_E4M3", "I8")
WORDS = ("strange", "down_prj", "attn", "mlp", "q_proj", "qkv", "layers", "visual", "model", "weight")
PATTERNS = (
    "visual", "visual*", "visual.*", "model.visual*", "model.visual", "*visual*", "lm_head", "lm_head*",
    "model*", "model.layers.visual*", "visual.blocks*", "visual.merger*", "visual.patch_embed*",
    "model.layers.0*", "model.layers.0.mlp.down_proj", "model.language_model.layers.1.self_attn.o_proj",
    "visual.blocks.0.attn.qkv", "model.visual.blocks.1.mlp*", "visual.blocks.1", "layers.1", "*self_attn*",
    "*mlp.down_proj", "model.embed_tokens", "language_model.model.layers.0.mlp.gate_up_proj",
    "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj",
    "model.layers*", "language_model*", "blocks.0.attn", ".1.mlp", "*.1.mlp*", "*.1.*", "*layers.?.mlp*",
    "model.layers.[02].mlp*", "*s.2*",
)  # fmt: skip


@dataclass(frozen=True)
class Made:
    """A checkpoint: its JSON files and the headers of its tensors."""

    files: Mapping[str, Any]
    tensors: Mapping[str, Header]

    @property
    def case(self) -> dict[str, Any]:
        """As the worker reads it, over an empty base."""
        return {"base": "empty", "files": self.files, "put": self.tensors}


EMPTY: Mapping[str, Any] = {"empty": {"files": {}, "tensors": {}}}


SCOPES = (
    ("language_model",), ("language_model", "vision"), ("vision",), (), ("language_model", "vision", "head"),
)  # fmt: skip


@st.composite
def checkpoints(draw: st.DrawFn) -> Made:
    """A checkpoint that is right, or nearly so, or quite wrong."""
    tied = draw(st.booleans())
    form = draw(st.one_of(st.sampled_from(CONFIGS[:9]), st.sampled_from(CONFIGS)))
    whole = form.render(config(tied=tied, layers=draw(st.integers(1, 3)), blocks=draw(st.integers(1, 3))))
    model = structure.from_config(whole)
    tensors: dict[str, Header] = {name: ("BF16", shape) for name, shape in model.shapes.items()}
    if draw(st.booleans()) if tied else draw(st.integers(0, 7)) == 0:
        del tensors["lm_head.weight"]
    parts = draw(st.sampled_from(SCOPES))
    for linear in model.linears.values():
        if linear.part in parts and f"{linear.name}.weight" in tensors:
            tensors[f"{linear.name}.weight"] = ("F8_E4M3", model.shapes[f"{linear.name}.weight"])
            tensors |= {f"{linear.name}.{scale}": SCALAR for scale in ("weight_scale", "input_scale")}
    if draw(st.booleans()):
        tensors |= {
            f"{a}.{s}": SCALAR for a in model.attentions for s in ("k_proj.k_scale", "v_proj.v_scale")
        }
    if draw(st.integers(0, 7)) == 0:
        for block in range(model.vision_blocks):
            tensors |= {
                f"visual.blocks.{block}.attn.{s}": SCALAR for s in ("k_proj.k_scale", "v_proj.v_scale")
            }
    for _ in range(draw(st.sampled_from([0, 0, 0, 0, 1, 1, 1, 2, 3, 4]))):
        _edit(draw, tensors)
    for part in ("visual", "model", "lm_head"):
        spelling = draw(st.sampled_from(["published", "published", "transformers", "vllm"]))
        if draw(st.integers(0, 2)) == 0:
            tensors = {
                spell(name, spelling) if name.partition(".")[0] == part else name: header
                for name, header in tensors.items()
            }
    files = {"config.json": whole, "preprocessor_config.json": preprocessor()}
    return Made(files=files | _declared(draw, whole, parts), tensors=tensors)


def _declared(draw: st.DrawFn, whole: Mapping[str, Any], parts: Sequence[str]) -> dict[str, Any]:
    form = draw(st.one_of(*[st.sampled_from(USUAL)] * 3, st.sampled_from(QUANTIZATIONS)))
    if draw(st.integers(0, 7)) == 0:
        form = replace(form, separate=draw(st.sampled_from(QUANTIZATIONS)).separate)
    meant = [
        [] if "head" in parts else ["lm_head"],
        []
        if "vision" in parts
        else [draw(st.sampled_from(["visual", "visual", "visual*", "model.visual*"]))],
        [] if "language_model" in parts else ["model", "language_model"],
    ]
    right = [pattern for patterns in meant for pattern in patterns]
    more = st.lists(st.sampled_from(PATTERNS), max_size=4)
    lists = st.one_of(*[st.just(right)] * 4, more.map(lambda found: right + found), more)
    files: dict[str, Any] = {}
    same = draw(lists)
    patterns = {
        name: same if draw(st.integers(0, 3)) else draw(lists) for name in ("exclude_modules", "ignore")
    }
    if form.inline:
        files["config.json"] = {**whole, "quantization_config": form.inline.render("config.json", patterns)}
    if form.separate:
        other = patterns if draw(st.booleans()) else {name: draw(lists) for name in patterns}
        files["hf_quant_config.json"] = form.separate.render("hf_quant_config.json", other)
    return files


def _edit(draw: st.DrawFn, tensors: dict[str, Header]) -> None:
    name = draw(st.sampled_from(sorted(tensors)))
    dtype, shape = tensors[name]
    match draw(st.sampled_from(["drop", "drop", "rename", "add", "retype", "reshape", "respell", "twice"])):
        case "drop":
            del tensors[name]
        case "rename":
            del tensors[name]
            tensors[_renamed(draw, name)] = dtype, shape
        case "add":
            module = draw(st.sampled_from(MODULES)).replace("{}", str(draw(st.integers(0, 4))))
            leaf = draw(st.sampled_from(LEAVES))
            words = [module, *draw(st.lists(st.sampled_from(WORDS), max_size=1)), leaf]
            new = ".".join(word for word in words if word)
            tensors.setdefault(new, SCALAR if leaf.endswith("scale") else ("BF16", (8,)))
        case "retype":
            tensors[name] = draw(st.sampled_from(TYPES)), shape
        case "reshape":
            tensors[name] = dtype, draw(st.sampled_from(list(different(shape))))
        case "respell":
            del tensors[name]
            tensors[spell(name, draw(st.sampled_from(["transformers", "vllm"])))] = dtype, shape
        case "twice":
            tensors[spell(name, draw(st.sampled_from(["transformers", "vllm"])))] = dtype, shape


def _renamed(draw: st.DrawFn, name: str) -> str:
    words = name.split(".")
    at = draw(st.integers(0, len(words) - 1))
    match draw(st.sampled_from(["replace", "remove", "insert", "swap"])):
        case "replace":
            words[at] = draw(st.sampled_from(WORDS))
        case "remove" if len(words) > 1:
            del words[at]
        case "insert":
            words.insert(at, draw(st.sampled_from(WORDS)))
        case _:
            words[-1] = draw(st.sampled_from(LEAVES))
    return ".".join(words)
