"""The forms in which config.json and hf_quant_config.json say the same: what differs, without the numbers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from qvlfp8 import structure
from qvlfp8.contract.control import config

__all__ = [
    "MARKS",
    "ConfigForm",
    "QuantizationForm",
    "all_configs",
    "all_quantizations",
    "odd_field",
    "plain",
    "read_config",
    "read_quantization",
]

Rope = Literal["published", "transformers-4", "transformers-5", "none", "other"]
Tie = Literal["absent", "true", "false", "other"]

_SECTION = [8, 12, 12]
_ROPES: Mapping[str, dict[str, Any]] = {
    "published": {"rope_scaling": {"type": "mrope", "mrope_section": _SECTION}, "rope_theta": 1e6},
    "transformers-4": {
        "rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": _SECTION},
        "rope_theta": 1e6,
    },
    "transformers-5": {
        "rope_parameters": {
            "type": "mrope", "rope_type": "default", "mrope_section": _SECTION, "rope_theta": 1e6,
        }
    },
}  # fmt: skip

_TEXT_FIELDS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "max_window_layers", "max_position_embeddings", "vocab_size", "hidden_act", "rms_norm_eps",
    "bos_token_id", "eos_token_id",
)  # fmt: skip


def _tie(section: Mapping[str, Any]) -> Tie:
    match section.get("tie_word_embeddings"):
        case True:
            return "true"
        case False:
            return "false"
        case None:
            return "absent"
        case _:
            return "other"


def _rope(section: Mapping[str, Any]) -> Rope:
    if isinstance(parameters := section.get("rope_parameters"), Mapping):
        kinds = (parameters.get("rope_type"), parameters.get("type"), "rope_scaling" in section)
        return "transformers-5" if kinds == ("default", "mrope", False) else "other"
    scaling = section.get("rope_scaling")
    if scaling is None:
        return "none"
    if not isinstance(scaling, Mapping) or "mrope_section" not in scaling:
        return "other"
    match scaling.get("rope_type"), scaling.get("type"):
        case None, "mrope":
            return "published"
        case "default", "default":
            return "transformers-4"
        case _:
            return "other"


@dataclass(frozen=True, kw_only=True)
class ConfigForm:
    """What differs between config.json of the published models, of transformers 4 and of transformers 5.

    ``text_*`` are None in the flat form, which has no ``text_config``.
    """

    tie: Tie
    rope: Rope
    text_tie: Tie | None = None
    text_rope: Rope | None = None
    text_architectures: bool | None = None
    text_model_type: str | None = None

    @property
    def key(self) -> str:
        """All of it in one word."""
        if self.text_tie is None:
            return f"flat tie={self.tie} rope={self.rope}"
        return (
            f"nested tie={self.tie} rope={self.rope} text: tie={self.text_tie} rope={self.text_rope} "
            f"architectures={self.text_architectures} model_type={self.text_model_type}"
        )

    def render(self, whole: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """config.json of the control checkpoint, or another in the published form, in this form."""
        whole = dict(whole or config())
        for name in ("tie_word_embeddings", "rope_scaling", "rope_theta"):
            del whole[name]
        whole |= _ROPES.get(self.rope, {}) | _rendered_tie(self.tie)
        if self.text_tie is None:
            return whole
        text = {name: whole.pop(name) for name in _TEXT_FIELDS}
        text |= _ROPES.get(self.text_rope or "none", {}) | _rendered_tie(self.text_tie)
        if self.text_architectures:
            text["architectures"] = whole["architectures"]
        if self.text_model_type:
            text["model_type"] = self.text_model_type
        return whole | {"text_config": text}


def _rendered_tie(tie: Tie) -> dict[str, bool]:
    return {} if tie == "absent" else {"tie_word_embeddings": tie == "true"}


_SHOWN: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "use_sliding_window": (False,),
    "is_encoder_decoder": (False,),
    "torch_dtype": ("bfloat16", "float16", "float32"),
    "dtype": ("bfloat16", "float16", "float32"),
}
"""Fields whose value decides whether vLLM builds the model: what is there must be one of these."""

_NOT_OF_TEXT = ("image_token_id", "video_token_id")
"""What transformers 4 writes into ``text_config`` as null; the numbers stand outside."""

_NUMBERS = ("rms_norm_eps", "rope_theta", "max_position_embeddings", *_NOT_OF_TEXT)


def odd_field(whole: Mapping[str, Any]) -> str | None:
    """The first field of config.json that no probe has so and that vLLM may refuse; None if there is none."""
    text, vision = whole.get("text_config") or whole, whole.get("vision_config") or {}
    if not isinstance(text, Mapping) or not isinstance(vision, Mapping):
        return "text_config"
    for section, nulls in ((whole, ()), (text, _NOT_OF_TEXT), (vision, ())):
        if (name := _odd_value(section, nulls)) is not None:
            return name
    for name in ("compression_config", "quantization"):
        if name in whole:
            return name
    if whole.get("architectures") != [structure.ARCHITECTURE]:
        return "architectures"
    if text is not whole and "quantization_config" in text:
        return "text_config.quantization_config"
    if text is not whole and text.get("architectures") not in (None, [structure.ARCHITECTURE]):
        return "text_config.architectures"
    layers = text.get("layer_types", ["full_attention"] * text.get("num_hidden_layers", 0))
    if layers != ["full_attention"] * text.get("num_hidden_layers", len(layers)):
        return "layer_types"
    return _odd_size(text, vision)


def _odd_value(section: Mapping[str, Any], nulls: Sequence[str]) -> str | None:
    """A field of one section whose value was not shown; those of ``nulls`` may be null."""
    for name, shown in _SHOWN.items():
        if section.get(name, shown[0]) not in shown:
            return name
    for name in _NUMBERS:
        value = section.get(name, 1)
        if name in nulls and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            return name
    return None


def _odd_size(text: Mapping[str, Any], vision: Mapping[str, Any]) -> str | None:
    """Sizes that do not go together; those that are not there are not judged."""
    heads, shared = text.get("num_attention_heads"), text.get("num_key_value_heads")
    if isinstance(heads, int) and isinstance(shared, int) and (not shared or heads % shared):
        return "num_key_value_heads"
    tower, wide = vision.get("num_heads", 16), vision.get("hidden_size", 1280)
    if isinstance(tower, int) and isinstance(wide, int) and (not tower or wide % tower):
        return "vision_config.num_heads"
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    sections = rope.get("mrope_section") if isinstance(rope, Mapping) else None
    hidden = text.get("hidden_size")
    if not (isinstance(sections, list) and isinstance(heads, int) and isinstance(hidden, int) and heads):
        return None
    fits = all(isinstance(part, int) for part in sections) and 2 * sum(sections) == hidden // heads
    return None if fits else "mrope_section"


def read_config(whole: Mapping[str, Any]) -> ConfigForm:
    """Find the form of a config.json."""
    text = whole.get("text_config")
    if text is None:
        return ConfigForm(tie=_tie(whole), rope=_rope(whole))
    if not isinstance(text, Mapping):
        text = {}
    return ConfigForm(
        tie=_tie(whole),
        rope=_rope(whole),
        text_tie=_tie(text),
        text_rope=_rope(text),
        text_architectures=bool(text.get("architectures")),
        text_model_type=text.get("model_type"),
    )


def all_configs() -> Iterator[ConfigForm]:
    """Each form that is asked about."""
    ties: tuple[Tie, ...] = ("absent", "true", "false")
    ropes: tuple[Rope, ...] = ("published", "transformers-4", "transformers-5")
    for tie, rope in itertools.product(ties, ropes):
        yield ConfigForm(tie=tie, rope=rope)
    pairs: tuple[tuple[Rope, Rope], ...] = (
        ("none", "published"), ("published", "published"), ("transformers-4", "transformers-4"),
        ("none", "transformers-5"),
    )  # fmt: skip
    for tie, text_tie, (outer, inner), architectures, model_type in itertools.product(
        ties, ties, pairs, (False, True), ("qwen2_5_vl_text", None)
    ):
        yield ConfigForm(
            tie=tie, rope=outer, text_tie=text_tie, text_rope=inner, text_architectures=architectures,
            text_model_type=model_type,
        )  # fmt: skip


MARKS: Mapping[str, str] = {
    "config.json exclude_modules": "visual.merger.mlp.0",
    "config.json ignore": "visual.merger.mlp.2",
    "hf_quant_config.json exclude_modules": "visual.blocks.0.attn.proj",
    "hf_quant_config.json ignore": "visual.blocks.1.attn.proj",
}
"""List -> the module that it excludes in a probe: what vLLM leaves out says which list it read."""

_NUMBER = {"dynamic": False, "num_bits": 8, "type": "float"}

Algorithm = Literal["FP8", "absent", "other"]


@dataclass(frozen=True, kw_only=True)
class Section:
    """One file's declaration: what differs between the two that ModelOpt writes.

    ``method``: ``quant_method`` is there. ``nested``: the fields stand under ``quantization``.
    ``producer``: it names ModelOpt. The other four say which keys are there, and whether they say FP8.
    ``odd``: something is there that no probe has.
    """

    method: bool
    nested: bool
    algorithm: Algorithm
    exclude_modules: bool
    ignore: bool
    kv_algorithm: bool
    kv_scheme: bool
    producer: bool = False
    odd: bool = False

    @property
    def key(self) -> str:
        """All of it in one word."""
        flags = [
            name
            for name in (
                "method",
                "nested",
                "exclude_modules",
                "ignore",
                "kv_algorithm",
                "kv_scheme",
                "producer",
                "odd",
            )
            if getattr(self, name)
        ]
        return "+".join([self.algorithm, *flags])

    def render(self, file: str, patterns: Mapping[str, Sequence[str]] | None = None) -> dict[str, Any]:
        """The declaration; the lists are marks, unless ``patterns`` gives them."""
        inner: dict[str, Any] = {} if self.algorithm == "absent" else {"quant_algo": "FP8"}
        for name in ("exclude_modules", "ignore"):
            if getattr(self, name):
                inner[name] = list(patterns[name]) if patterns else [MARKS[f"{file} {name}"]]
        if self.kv_algorithm:
            inner["kv_cache_quant_algo"] = "FP8"
        if self.kv_scheme:
            inner["kv_cache_scheme"] = _NUMBER
        outer: dict[str, Any] = {"quant_method": "modelopt"} if self.method else {}
        if self.producer:
            outer["producer"] = {"name": "modelopt", "version": "0.0.0"}
        return outer | ({"quantization": inner} if self.nested else inner)


@dataclass(frozen=True, kw_only=True)
class QuantizationForm:
    """Which file declares the quantization, and how; None: it does not."""

    inline: Section | None
    separate: Section | None

    @property
    def key(self) -> str:
        """All of it in one word."""
        parts = [("config.json", self.inline), ("hf_quant_config.json", self.separate)]
        return " and ".join(f"{file} {section.key}" for file, section in parts if section) or "none"

    def render(self) -> dict[str, Any]:
        """Files of the control checkpoint that declare it so."""
        inline = {"quantization_config": self.inline.render("config.json")} if self.inline else {}
        files: dict[str, Any] = {"config.json": config() | inline}
        if self.separate:
            files["hf_quant_config.json"] = self.separate.render("hf_quant_config.json")
        return files


def _read_section(declared: Mapping[str, Any] | None) -> Section | None:
    if declared is None:
        return None
    nested = isinstance(declared.get("quantization"), Mapping)
    inner = declared["quantization"] if nested else declared
    match inner.get("quant_algo"):
        case "FP8":
            algorithm: Algorithm = "FP8"
        case None:
            algorithm = "absent"
        case _:
            algorithm = "other"
    method, producer = declared.get("quant_method"), declared.get("producer")
    name = producer.get("name") if isinstance(producer, Mapping) else producer
    lists = [inner[key] for key in ("exclude_modules", "ignore") if key in inner]
    return Section(
        method=method == "modelopt",
        nested=nested,
        algorithm=algorithm,
        exclude_modules="exclude_modules" in inner,
        ignore="ignore" in inner,
        kv_algorithm=inner.get("kv_cache_quant_algo") is not None,
        kv_scheme=inner.get("kv_cache_scheme") is not None,
        producer=name == "modelopt",
        odd=method not in (None, "modelopt")
        or ("producer" in declared and name != "modelopt")
        or ("quantization" in declared and not nested)
        or inner.get("kv_cache_quant_algo", "FP8") not in (None, "FP8")
        or not all(isinstance(found, list) and all(isinstance(p, str) for p in found) for found in lists),
    )


def read_quantization(whole: Mapping[str, Any], separate: Mapping[str, Any] | None) -> QuantizationForm:
    """Find the form of a checkpoint's declarations: config.json, and hf_quant_config.json if there is one."""
    return QuantizationForm(
        inline=_read_section(whole.get("quantization_config")), separate=_read_section(separate)
    )


_NESTED = Section(
    method=False,
    nested=True,
    algorithm="FP8",
    exclude_modules=True,
    ignore=False,
    kv_algorithm=True,
    kv_scheme=False,
    producer=True,
)


def _sections() -> Iterator[Section]:
    algorithms: tuple[Algorithm, ...] = ("FP8", "absent")
    no_yes = (False, True)
    for method, nested, algorithm, exclude_modules, ignore, kv_algorithm, kv_scheme in itertools.product(
        no_yes, no_yes, algorithms, no_yes, no_yes, no_yes, no_yes
    ):
        if algorithm == "FP8" or not (kv_algorithm or kv_scheme):
            section = Section(
                method=method, nested=nested, algorithm=algorithm, exclude_modules=exclude_modules,
                ignore=ignore, kv_algorithm=kv_algorithm, kv_scheme=kv_scheme,
            )  # fmt: skip
            yield section
            yield replace(section, producer=True)


def all_quantizations() -> Iterator[QuantizationForm]:
    """Each form that is asked about: one file in every form, or both, one of them as ModelOpt writes it."""
    yield QuantizationForm(inline=None, separate=None)
    for section in _sections():
        yield QuantizationForm(inline=section, separate=None)
        yield QuantizationForm(inline=None, separate=section)
        for kv_algorithm in (False, True):
            yield QuantizationForm(inline=section, separate=replace(_NESTED, kv_algorithm=kv_algorithm))


def plain(patterns: Sequence[str]) -> dict[str, Any]:
    """A ``quantization_config`` that every version reads alike, with these exclusions."""
    section = Section(
        method=True, nested=False, algorithm="FP8", exclude_modules=True, ignore=True,
        kv_algorithm=True, kv_scheme=True,
    )  # fmt: skip
    return section.render("config.json", {"exclude_modules": patterns, "ignore": patterns})
