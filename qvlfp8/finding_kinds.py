"""The ids that findings can have: how severe, what each means, how it is mended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

__all__ = ["KINDS", "Kind", "Severity"]

Severity = Literal["fail", "note", "error"]
"""``fail``: the checkpoint does not work there; ``note``: harmless; ``error``: nothing was learned."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a finding's id stands for: its weight, its meaning and its mend, a line each."""

    severity: Severity
    meaning: str
    mend: str


_RE_EXPORT = "quantize and export again"

KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "environment-fault": Kind(
            severity="error",
            meaning="the environment or the harness failed; nothing is known about the checkpoint",
            mend="read the message, repair the environment, run again",
        ),
        "does-not-resolve": Kind(
            severity="fail",
            meaning="the packages' own requirements leave no versions that fit together",
            mend="name other versions in matrix.yaml; the resolver's reason says which exclude each other",
        ),
        "packages-incompatible": Kind(
            severity="fail",
            meaning="beside these packages this vLLM refuses every checkpoint, a right one too",
            mend="pin the versions of the plain environment (for vLLM before 0.12: transformers 4.57.6)",
        ),
        "stray-vision-kv-scale": Kind(
            severity="fail",
            meaning="the vision tower was given KV cache scales, for which vLLM's has no parameter",
            mend="remove the visual *.k_scale and *.v_scale tensors, or disable "
            "*visual*_bmm_quantizer after the KV cache entry and quantize again",
        ),
        "vision-exclusion-ignored": Kind(
            severity="fail",
            meaning="the vision tower is excluded and BF16, but this vLLM built it in FP8: blind",
            mend='spell the exclusion "visual" under the key that this vLLM reads',
        ),
        "language-model-exclusion-ignored": Kind(
            severity="fail",
            meaning="language model layers are excluded and BF16, but this vLLM built them in FP8",
            mend="spell the exclusion by vLLM's module names under the key that this vLLM reads",
        ),
        "quantization-not-recognised": Kind(
            severity="fail",
            meaning="the tensors are FP8, but vLLM found no quantization config that it knows",
            mend="put quantization_config with quant_method modelopt into config.json",
        ),
        "config-rejected": Kind(
            severity="fail",
            meaning="vLLM refuses the configuration before it looks at a tensor",
            mend="correct what the message names in config.json or hf_quant_config.json",
        ),
        "missing-file": Kind(
            severity="fail",
            meaning="vLLM asks for a file that the checkpoint folder lacks",
            mend="copy the tokenizer and preprocessor files of the base model into the folder",
        ),
        "language-kv-scale-unsupported": Kind(
            severity="fail",
            meaning="this vLLM cannot place the language model's KV cache scales",
            mend="use another vLLM (not 0.10.0 or 0.24.0), or a checkpoint without KV cache scales",
        ),
        "unexpected-tensor": Kind(
            severity="fail",
            meaning="the checkpoint has a tensor for which vLLM's model has no place",
            mend="correct the tensor's name, or leave the tensor out",
        ),
        "shape-mismatch": Kind(
            severity="fail",
            meaning="a tensor's shape is not that of its parameter",
            mend="make config.json and tensors agree; " + _RE_EXPORT,
        ),
        "scale-never-loaded": Kind(
            severity="fail",
            meaning="an FP8 layer kept the scale it was built with: its output is meaningless",
            mend="add the missing scale tensors, or exclude the layer; " + _RE_EXPORT,
        ),
        "weight-never-loaded": Kind(
            severity="fail",
            meaning="a weight, bias or norm was left as memory happened to be",
            mend="add the missing tensors; " + _RE_EXPORT,
        ),
        "parameter-partly-written": Kind(
            severity="fail",
            meaning="some shards of a fused parameter have no tensor",
            mend="add the missing q, k, v, gate or up tensors; " + _RE_EXPORT,
        ),
        "tie-misread": Kind(
            severity="fail",
            meaning="vLLM ties lm_head to the embeddings where the checkpoint does not, or the other way",
            mend="write tie_word_embeddings both at the top and in the text_config of config.json",
        ),
        "cast-to-fp8": Kind(
            severity="fail",
            meaning="an unquantized tensor was cast into an FP8 parameter, without its scale",
            mend="exclude the layer in the quantization config, or quantize it",
        ),
        "cast-from-fp8": Kind(
            severity="fail",
            meaning="an FP8 tensor was cast into an unquantized parameter: its scale is lost",
            mend="take the layer out of the exclusions, or leave it unquantized",
        ),
        "tensor-dropped": Kind(
            severity="fail",
            meaning="vLLM read a tensor and put it nowhere, without a word",
            mend="correct the tensor's name, or leave the tensor out",
        ),
        "parameter-overwritten": Kind(
            severity="fail",
            meaning="two tensors were written to the same place: the last one read won",
            mend="leave one of them out",
        ),
        "kv-scale-incomplete": Kind(
            severity="fail",
            meaning="an attention layer has one of its two KV cache scales",
            mend="add the other one, or remove both; " + _RE_EXPORT,
        ),
        "kv-scale-dropped": Kind(
            severity="note",
            meaning="KV cache scales of the checkpoint were not used; vLLM takes 1.0",
            mend="name them self_attn.k_proj.k_scale and self_attn.v_proj.v_scale",
        ),
        "kv-scale-defaulted": Kind(
            severity="note",
            meaning="the KV cache is FP8 and has no scales; vLLM takes 1.0",
            mend="calibrate with a KV cache quantizer, if long answers lose accuracy",
        ),
        "tensor-unneeded": Kind(
            severity="note",
            meaning="vLLM computes or ties what this tensor holds",
            mend="none needed",
        ),
        "dtype-changed": Kind(
            severity="note",
            meaning="vLLM keeps a tensor in another unquantized type than the checkpoint",
            mend="none needed",
        ),
        "fused-scale-in-first-shard": Kind(
            severity="note",
            meaning="a scale of a layer fused on disk fills one of vLLM's entries for it; the "
            "others hold the lowest number, and vLLM takes the largest (seen up to 0.18)",
            mend="none needed",
        ),
        "missing-tensor": Kind(
            severity="fail",
            meaning="the model has a parameter for which there is no tensor",
            mend=_RE_EXPORT,
        ),
        "dtype-mismatch": Kind(
            severity="fail",
            meaning="a tensor's type is not what the configuration declares for it",
            mend="make config.json and tensors agree; " + _RE_EXPORT,
        ),
        "scale-missing": Kind(
            severity="fail",
            meaning="a quantized module, or an FP8 KV cache, has no scale",
            mend=_RE_EXPORT,
        ),
        "scale-not-finite": Kind(
            severity="fail",
            meaning="a scale is infinite or not a number",
            mend="calibrate on data that the model gives finite activations for",
        ),
        "scale-not-positive": Kind(
            severity="fail",
            meaning="a scale is zero or negative",
            mend="calibrate on data that reaches every module",
        ),
        "config-contradicts-tensors": Kind(
            severity="fail",
            meaning="modules are quantized that the configuration excludes, or the other way round",
            mend="correct the exclusions in config.json and hf_quant_config.json",
        ),
        "config-contradicts-config": Kind(
            severity="fail",
            meaning="config.json and hf_quant_config.json declare different quantizations",
            mend="make the two files agree",
        ),
        "tie-contradicts-tensors": Kind(
            severity="fail",
            meaning="lm_head is declared tied to the embeddings, and the stored one differs",
            mend="set tie_word_embeddings to false in config.json, or leave lm_head.weight out",
        ),
        "weight-not-finite": Kind(
            severity="fail",
            meaning="a weight holds NaN or infinity",
            mend=_RE_EXPORT,
        ),
        "weight-all-zero": Kind(
            severity="fail",
            meaning="every element of an FP8 weight is zero",
            mend=_RE_EXPORT,
        ),
        "file-invalid": Kind(
            severity="fail",
            meaning="a file that vLLM needs is empty, malformed, or contradicts config.json",
            mend="copy it from the base model",
        ),
        "file-missing": Kind(
            severity="fail",
            meaning="a file that vLLM needs is not in the folder",
            mend="copy the tokenizer and preprocessor files of the base model into the folder",
        ),
        "scope-not-quantized": Kind(
            severity="fail",
            meaning="the recipe's scope is not quantized, or not whole",
            mend="use a ModelOpt version that honours the recipe",
        ),
        "quantized-otherwise": Kind(
            severity="fail",
            meaning="modules are quantized in another format than the recipe's",
            mend="quantize again by the recipe, or inspect it by the recipe that it was made by",
        ),
        "quantized-outside-scope": Kind(
            severity="fail",
            meaning="modules outside the recipe's scope are quantized",
            mend="use a ModelOpt version that honours the recipe",
        ),
        "blind": Kind(
            severity="fail",
            meaning="the answers do not depend on the picture: the model is blind",
            mend="see what inspect and preflight say of the vision tower; exclude it, or quantize it whole",
        ),
        "sees-wrongly": Kind(
            severity="fail",
            meaning="questions about pictures are answered worse than the BF16 model answers them",
            mend="compare vision weights, scales and config.json with the base model's; " + _RE_EXPORT,
        ),
        "speaks-wrongly": Kind(
            severity="fail",
            meaning="questions without a picture are answered worse than the BF16 model answers them",
            mend="compare weights, scales, chat template and config.json with the base model's; "
            + _RE_EXPORT,
        ),
        "answers-unknown": Kind(
            severity="note",
            meaning="right answers are not known of this model: it was held against BF16's answers",
            mend="none needed",
        ),
        "diverges": Kind(
            severity="fail",
            meaning="the tokens' probabilities are further from BF16's than the bounds allow",
            mend="look for wrong scales, or calibrate on data like that of your use; " + _RE_EXPORT,
        ),
        "not-finite-output": Kind(
            severity="fail",
            meaning="log-probabilities are NaN or infinite",
            mend="look for scales that are zero, NaN, or too small for the activations",
        ),
        "not-generative": Kind(
            severity="fail",
            meaning="vLLM takes the model for one that writes no text, and refuses to be asked",
            mend="save config.json as transformers 4 writes it, or use a vLLM that reads the newer layout",
        ),
        "generation-failed": Kind(
            severity="fail",
            meaning="vLLM loads the checkpoint and raises an exception when it is asked something",
            mend="read the message; compare config.json with the base model's",
        ),
        "kernel-refused": Kind(
            severity="fail",
            meaning="an FP8 kernel of this vLLM refuses the shape of a weight",
            mend="use another vLLM, or exclude the layer from quantization",
        ),
        "slower-than-bf16": Kind(
            severity="fail",
            meaning="fewer output tokens a second than the bound allows, as a share of BF16's",
            mend="read which kernels vLLM chose in the load stage's log lines",
        ),
        "kv-scale-one": Kind(
            severity="note",
            meaning="vLLM scales the FP8 KV cache by 1.0",
            mend="calibrate with a KV cache quantizer, if long answers lose accuracy",
        ),
        "kernel-fallback": Kind(
            severity="note",
            meaning="vLLM fell back to another kernel than it would rather use",
            mend="none needed, unless speed matters",
        ),
        "loader-error": Kind(
            severity="fail",
            meaning="vLLM refused the checkpoint for a reason that is not classified",
            mend="read the message",
        ),
    }
)
"""Every id that a diagnosis can return."""
