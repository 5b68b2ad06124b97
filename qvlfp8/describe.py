"""What a checkpoint is: what its files claim, what its tensors are, and whether the two agree.

From headers and JSON alone; no value of a tensor is looked at, so a checkpoint of the hub is described like
one on disk. Which vLLM can serve it is another question: this one has one answer for all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from qvlfp8 import declared, families
from qvlfp8.checkpoint import CONFIG, Checkpoint
from qvlfp8.claims import FileClaim, claims, differences
from qvlfp8.collapse import collapse
from qvlfp8.declared import Activations, Declaration, Method, UnknownDeclaration
from qvlfp8.errors import UnknownModelError
from qvlfp8.families import ModelType
from qvlfp8.formats import Format, format_of
from qvlfp8.structure import HEAD, Linear, Part, Structure, UnknownModel, canonical, part_of
from qvlfp8.tensorfile import Tensor

__all__ = ["Described", "Description", "FileClaim", "KvCache", "PartFormats", "as_json", "describe", "look"]

PARTS: tuple[Part, ...] = ("vision", "language_model", "head")

Spelling = Literal["published", "transformers>=4.52", "vllm", "mixed"]
"""How tensors are named: ``model.…``, ``model.language_model.…`` or ``language_model.model.…``."""

_KV_ENDS = (".k_scale", ".v_scale")
_DTYPES: Mapping[str, str] = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}

# What to report, and the sets of files of which one must be whole (as conformance.check_files has it).
_COMPANIONS: Mapping[str, Sequence[Collection[str]]] = {
    "tokenizer_config.json": [{"tokenizer_config.json"}],
    "tokenizer.json": [{"tokenizer.json"}, {"vocab.json", "merges.txt"}],
    "preprocessor_config.json": [{"preprocessor_config.json"}],
    "chat_template.jinja": [{"chat_template.jinja"}, {"chat_template.json"}],
}


@dataclass(frozen=True, kw_only=True)
class PartFormats:
    """How the linear modules of a part are stored: each format with its number of modules, most first.

    ``exceptions`` are the modules that are not in the first format, their layer numbers collapsed;
    ``first_exception`` is the first of them in the model's order.
    """

    part: Part
    modules: int
    formats: tuple[tuple[Format, int], ...]
    exceptions: tuple[str, ...]
    first_exception: str | None

    @property
    def partial(self) -> bool:
        """Whether the modules are not all in one format."""
        return len(self.formats) > 1

    @property
    def quantized(self) -> int:
        """How many modules are FP8 or NVFP4."""
        return sum(count for form, count in self.formats if form.quantized)


@dataclass(frozen=True, kw_only=True)
class KvCache:
    """The key-value cache: the declared format, and scales found, of ``expected`` for the language model.

    ``stray`` are scales of the vision tower, which has no cache; no vLLM has a place for them.
    """

    declared: Literal["fp8"] | None
    scales: int
    expected: int
    stray: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Description:
    """A checkpoint in one form, whoever made it. Names of modules are canonical (:mod:`qvlfp8.structure`)."""

    family: ModelType
    title: str
    parameters: int
    layers: int
    vision_blocks: int
    hidden_size: int
    method: Method
    activations: Activations
    producer: str | None
    producer_version: str | None
    parts: tuple[PartFormats, ...]
    kv_cache: KvCache
    claims: tuple[FileClaim, ...]
    claims_differ: tuple[str, ...]
    tied: bool
    head_stored: bool
    nested_config: bool
    spelling: Spelling
    dtype: str
    bytes_by_dtype: tuple[tuple[str, int], ...]
    tensors: int
    weight_files: int
    missing_files: tuple[str, ...]

    def part(self, name: Part) -> PartFormats:
        """Give one part."""
        return next(part for part in self.parts if part.part == name)


@dataclass(frozen=True, kw_only=True)
class Described:
    """A description with what it was made of: ``tensors`` are by canonical name."""

    description: Description
    checkpoint: Checkpoint
    structure: Structure
    declaration: Declaration
    tensors: Mapping[str, Tensor]
    formats: Mapping[str, Format]


def describe(checkpoint: Checkpoint, files: Collection[str] | None = None) -> Description:
    """Describe a checkpoint; :func:`look` gives what the description was made of as well.

    Args:
        checkpoint: only headers and configurations of it are used.
        files: the names of the files of its folder, if they do not all lie there (the hub's).

    Raises:
        UnknownModelError: a model, a quantization method or a format that the project does not know.
    """
    return look(checkpoint, files).description


def look(checkpoint: Checkpoint, files: Collection[str] | None = None) -> Described:
    """Describe a checkpoint and keep the parts: see :func:`describe`."""
    try:
        family, model = families.from_config(checkpoint.config, known=families.EVERY)
        claim = declared.read(checkpoint.quantization)
        tensors = _by_canonical_name(checkpoint.tensors)
        formats = {name: format_of(linear, tensors) for name, linear in model.linears.items()}
        claimed = tuple(claims(checkpoint, formats))
    except UnknownModel as error:
        raise _unknown(str(error), CONFIG) from None
    except UnknownDeclaration as error:
        raise _unknown(str(error), checkpoint.quantization_source or CONFIG) from None
    if other := next((form for form in formats.values() if form.kind == "other"), None):
        raise _unknown(f"linear weights of the type {other.dtype}", "the weights")
    text = checkpoint.config.get("text_config") or checkpoint.config
    description = Description(
        family=family.model_type,
        title=family.title,
        parameters=_parameters(model),
        layers=len(model.attentions),
        vision_blocks=model.vision_blocks,
        hidden_size=model.shapes["model.norm.weight"][0],
        method=claim.method,
        activations=claim.activations,
        producer=claim.producer,
        producer_version=claim.producer_version,
        parts=tuple(_part(part, model.linears.values(), formats) for part in PARTS),
        kv_cache=_kv_cache(claim, model, tensors),
        claims=claimed,
        claims_differ=tuple(differences(checkpoint)),
        tied=model.tied,
        head_stored=f"{HEAD}.weight" in tensors,
        nested_config="text_config" in checkpoint.config,
        spelling=_spelling(checkpoint.tensors),
        dtype=_dtype(checkpoint.config, text),
        bytes_by_dtype=_bytes_by_dtype(checkpoint.tensors.values()),
        tensors=len(checkpoint.tensors),
        weight_files=len(checkpoint.weight_files),
        missing_files=missing_files(checkpoint.root, files),
    )
    return Described(
        description=description, checkpoint=checkpoint, structure=model, declaration=claim,
        tensors=tensors, formats=formats,
    )  # fmt: skip


def as_json(description: Description) -> dict[str, Any]:
    """Give the description as JSON values, with the properties that are derived."""
    found: dict[str, Any] = asdict(description)
    for written, part in zip(found["parts"], description.parts, strict=True):
        written["formats"] = [{**asdict(form), "modules": count} for form, count in part.formats]
        written |= {"partial": part.partial, "quantized": part.quantized}
    for written, claim in zip(found["claims"], description.claims, strict=True):
        written["agrees"] = claim.agrees
    found["bytes_by_dtype"] = dict(description.bytes_by_dtype)
    return found


def missing_files(root: Path, files: Collection[str] | None = None) -> tuple[str, ...]:
    """Say which files that vLLM needs to serve pictures and chat are not there."""
    names = {path.name for path in root.iterdir()} if files is None else set(files)
    return tuple(
        name
        for name, choices in _COMPANIONS.items()
        if not any(names.issuperset(choice) for choice in choices)
        and not (name == "chat_template.jinja" and _mentions_template(root))
    )


def _mentions_template(root: Path) -> bool:
    """Older transformers keep the template inside tokenizer_config.json."""
    file = root / "tokenizer_config.json"
    return file.is_file() and b'"chat_template"' in file.read_bytes()


def _unknown(what: str, where: str) -> UnknownModelError:
    titles = ", ".join(family.title for family in families.FAMILIES.values())
    return UnknownModelError(
        f"{where}: qvlfp8 does not know {what}" if not what.startswith("this is") else f"{where}: {what}",
        mend=f"it knows {titles} in BF16, as FP8 or NVFP4 of ModelOpt, and as FP8 or NVFP4 of llm-compressor",
    )


def _by_canonical_name(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of two spellings of one name the first counts, as in conformance."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        found.setdefault(canonical(name), tensor)
    return found


def _parameters(model: Structure) -> int:
    total = 0
    for name, shape in model.shapes.items():
        size = 1
        for width in shape:
            size *= width
        total += 0 if name in model.optional else size
    return total


def _part(part: Part, linears: Iterable[Linear], formats: Mapping[str, Format]) -> PartFormats:
    names = [linear.name for linear in linears if linear.part == part and _counts(linear, formats)]
    counted = Counter(formats[name] for name in names).most_common()
    others = [name for name in names if formats[name] != counted[0][0]]
    return PartFormats(
        part=part,
        modules=len(names),
        formats=tuple(counted),
        exceptions=tuple(collapse(others)),
        first_exception=others[0] if others else None,
    )


def _counts(linear: Linear, formats: Mapping[str, Format]) -> bool:
    """A head that is tied to the embedding, and so not stored, is no module that lacks its weight."""
    return linear.part != "head" or formats[linear.name].kind != "missing"


def _kv_cache(claim: Declaration, model: Structure, tensors: Mapping[str, Tensor]) -> KvCache:
    scales = [name for name in tensors if name.endswith(_KV_ENDS)]
    return KvCache(
        declared=claim.kv_cache,
        scales=sum(part_of(name) == "language_model" for name in scales),
        expected=2 * len(model.attentions),
        stray=tuple(collapse(name for name in scales if part_of(name) == "vision")),
    )


def _spelling(names: Iterable[str]) -> Spelling:
    found: set[Spelling] = set()
    for name in names:
        if name.startswith(("model.visual.", "model.language_model.")):
            found.add("transformers>=4.52")
        elif name.startswith("language_model."):
            found.add("vllm")
        elif name.startswith("model."):
            found.add("published")
    return found.pop() if len(found) == 1 else "mixed"


def _dtype(config: Mapping[str, Any], text: object) -> str:
    inner = text if isinstance(text, Mapping) else {}
    said = config.get("dtype", config.get("torch_dtype", inner.get("dtype", inner.get("torch_dtype"))))
    return _DTYPES.get(str(said), "BF16")


def _bytes_by_dtype(tensors: Iterable[Tensor]) -> tuple[tuple[str, int], ...]:
    counted: Counter[str] = Counter()
    for tensor in tensors:
        counted[tensor.dtype] += tensor.nbytes
    return tuple(counted.most_common())
