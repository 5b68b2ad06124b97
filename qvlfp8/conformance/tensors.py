"""Whether every tensor of the model is there, in its shape and type, and no other."""

from __future__ import annotations

from collections.abc import Iterator

from qvlfp8.conformance.case import Case
from qvlfp8.conformance.kv_cache import expected_kv_scales
from qvlfp8.conformance.problem import Problem, wrong_dtype, wrong_shape
from qvlfp8.structure import canonical
from qvlfp8.tensorfile import read_bytes


def check_structure(case: Case) -> Iterator[Problem]:
    """Check that every tensor of the model is there, in its shape and, unless quantized, its type."""
    for name, shape in case.model.shapes.items():
        tensor = case.tensors.get(name)
        if tensor is None:
            if name not in case.model.optional:
                yield Problem(finding="missing-tensor", subject=name, detail=f"{list(shape)} is expected")
            continue
        linear = case.model.linears.get(name.removesuffix(".weight"))
        quantized = linear is not None and tensor.dtype == case.stored.dtype
        expected = case.stored.weight_shape(linear) if linear is not None and quantized else shape
        if tensor.shape != expected:
            yield wrong_shape(tensor, f"{list(expected)} is expected")
        if tensor.dtype != case.dtype and not quantized:
            yield wrong_dtype(tensor, case.dtype)


def check_foreign(case: Case) -> Iterator[Problem]:
    """Check that every tensor belongs to a module, and no module has a tensor twice."""
    known = set(case.model.shapes) | set(expected_kv_scales(case.model))
    known.update(f"{linear}.{scale}" for linear in case.model.linears for scale in case.stored.scales)
    vision_scales = set(case.kv_scales("vision"))
    for name, tensor in case.checkpoint.tensors.items():
        ours = canonical(name)
        if case.tensors[ours] is not tensor:
            yield Problem(
                finding="unexpected-tensor",
                subject=name,
                detail=f"{case.tensors[ours].name} is the same in another spelling",
            )
        elif ours in vision_scales:
            yield Problem(
                finding="stray-vision-kv-scale",
                subject=name,
                detail="the vision tower has no KV cache; vLLM has no parameter for it",
            )
        elif ours not in known:
            yield Problem(finding="unexpected-tensor", subject=name, detail="no module has such a tensor")


def check_tie(case: Case) -> Iterator[Problem]:
    """Check that an lm_head which is stored beside tied embeddings is the same: serving drops it."""
    head = case.tensors.get("lm_head.weight")
    embedding = case.tensors.get("model.embed_tokens.weight")
    if not case.model.tied or head is None or embedding is None:
        return
    if read_bytes(head) != read_bytes(embedding):
        detail = "the configuration ties it to the embeddings, from which it differs"
        yield Problem(finding="tie-contradicts-tensors", subject=head.name, detail=detail)
