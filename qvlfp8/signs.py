"""Around a finding: the command that mends it, reports upstream, the lines of a vLLM log that reveal it.

Apart from :mod:`qvlfp8.finding_kinds`, whose source is part of every judgement: no record depends on these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["SIGNS", "Signs", "signs_of"]


@dataclass(frozen=True, kw_only=True)
class Signs:
    """Command, links and log signatures of one finding.

    ``links`` are reports of users and changes upstream that are about it. ``signatures`` are regular
    expressions over vLLM's log (``re.MULTILINE``). A log is untrusted and long: each begins with literal
    text, and repeats nothing without a bound.
    """

    command: str = ""
    """What mends it where nothing else is wrong (README: Mend a checkpoint that you have)."""
    links: tuple[str, ...] = ()
    signatures: tuple[str, ...] = ()


_REPAIR = "qvlfp8 repair IN OUT"

_VLLM = "https://github.com/vllm-project/vllm"
_COMPRESSOR = "https://github.com/vllm-project/llm-compressor"

_VISION_KV = r"(?:model\.)?(?:visual\.)?blocks\.\d{1,4}\.attn\.[kv]_proj"
"""Vision attention is one fused ``attn.qkv``: what is named like this is a KV cache scale's module."""

_LANGUAGE_KV = r"[\w.]{0,60}\blayers\.\d{1,4}\.self_attn\.[\w.]{0,60}[kv]_scale\b"

_ANY_TENSOR = r"[\w.]{1,200}\.(?:weight|bias|\w{0,40}_scale\w{0,20})['\"]"

SIGNS: Mapping[str, Signs] = MappingProxyType(
    {
        "packages-incompatible": Signs(
            links=(
                f"{_COMPRESSOR}/issues/1899",
                f"{_COMPRESSOR}/issues/2268",
            ),
            signatures=(r"Found conflicts between 'rope_type=\w{1,20}' \(modern field\) and 'type=mrope'",),
        ),
        "stray-vision-kv-scale": Signs(
            command=_REPAIR,
            signatures=(
                rf"KeyError: ['\"]{_VISION_KV}\.[kv]_scale\b",
                rf"no module or parameter named ['\"]{_VISION_KV}['\".]",
            ),
        ),
        "vision-exclusion-ignored": Signs(
            command=_REPAIR,
            links=(
                f"{_VLLM}/issues/28072",
                f"{_VLLM}/pull/24178",
                f"{_VLLM}/pull/30164",
                f"{_COMPRESSOR}/issues/2641",
                f"{_COMPRESSOR}/pull/2597",
            ),
        ),
        "config-rejected": Signs(
            signatures=(
                r"No model architectures are specified",
                r"in architectures\n(?:[^\n]{0,300}\n){1,6}TypeError: 'NoneType' object is not iterable",
                r"ModelOpt currently only supports: [^\n]{0,400} quantizations in vLLM",
                r"Unknown quantization method: \w",
                r"Quantization method specified in the model config \([^\n]{0,80}\) does not match",
            ),
        ),
        "missing-file": Signs(
            command=_REPAIR + " --base MODEL",
            links=(f"{_COMPRESSOR}/issues/1305",),
            signatures=(
                r"Can't load (?:image processor|video processor|processor|feature extractor|tokenizer) for '",
                r"does not appear to have a file named (?:\w{0,20}processor|tokenizer)_config\.json",
            ),
        ),
        "language-kv-scale-unsupported": Signs(
            command=_REPAIR + " --without-kv-cache",
            signatures=(
                rf"KeyError: ['\"]{_LANGUAGE_KV}",
                r"KVCacheScaleParameter\.weight_loader\(\) takes \d{1,2} positional arguments",
            ),
        ),
        "unexpected-tensor": Signs(
            signatures=(
                rf"KeyError: ['\"](?!{_VISION_KV}\.[kv]_scale\b|{_LANGUAGE_KV}){_ANY_TENSOR}",
                rf"no module or parameter named ['\"](?!{_VISION_KV})[\w.]{{1,200}}['\"] in \w",
                r"Attempted to load nested weight ['\"]",
            ),
        ),
        "shape-mismatch": Signs(
            signatures=(
                r"Attempted to load weight \([^\n]{0,80}\) into parameter \(",
                r"Tried to load weights of size [^\n]{0,80}to a parameter of size",
            ),
        ),
        "weight-never-loaded": Signs(
            signatures=(r"Following weights were not initialized from checkpoint: ",),
        ),
        "kv-scale-dropped": Signs(
            links=(
                f"{_VLLM}/issues/54623",
                f"{_VLLM}/issues/25047",
            ),
        ),
        "blind": Signs(
            links=(
                f"{_COMPRESSOR}/issues/2072",
                "https://github.com/vllm-project/vllm-omni/issues/2686",
            ),
        ),
        "speaks-wrongly": Signs(
            links=(
                f"{_VLLM}/issues/38197",
                f"{_VLLM}/issues/42715",
            ),
        ),
        "not-finite-output": Signs(
            links=(f"{_VLLM}/issues/52034",),
        ),
        "tie-misread": Signs(command=_REPAIR),
        "not-generative": Signs(
            command=_REPAIR,
            signatures=(r"LLM\.\w{1,30}\(\) is only supported for generative models",),
        ),
        "kernel-refused": Signs(
            links=(f"{_VLLM}/issues/17595",),
            signatures=(
                r"Expected trailing dimension of mat1 to be divisible by 16",
                r"mat2 shape \(\d{1,9}x\d{1,9}\)? must be divisible by 16",
            ),
        ),
        "kv-scale-one": Signs(
            links=(
                f"{_VLLM}/issues/54623",
                f"{_VLLM}/issues/25047",
            ),
            signatures=(r"Using KV cache scaling factor 1\.0 for fp8",),
        ),
    }
)
"""By the finding's id; most findings are silent in a log."""


def signs_of(finding: str) -> Signs:
    """The signs of a finding; none for most."""
    return SIGNS.get(finding, Signs())
