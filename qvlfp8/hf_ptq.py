"""``hf_ptq.py``, upstream's own script in a Model-Optimizer checkout: where it is, and what it can do.

It is in no wheel. It has its own rules for vision-language models: the language model alone is quantized, and
pictures that it is told to calibrate on are dropped for Qwen2.5-VL.
"""

from __future__ import annotations

from pathlib import Path

from qvlfp8.errors import UsageError
from qvlfp8.recipe import Recipe

_PLACES = ("examples/hf_ptq/hf_ptq.py", "examples/llm_ptq/hf_ptq.py")
"""Since 0.46, and before."""


def find_script(checkout: Path, recipe: Recipe) -> Path:
    """Give the script's absolute path.

    Raises:
        UsageError: there is none below ``checkout``, or it cannot do what the recipe says.
    """
    if (said := _cannot(recipe)) is not None:
        raise UsageError(f"--hf-ptq: {recipe.id} {said}", mend="leave --hf-ptq out, or take lm-fp8")
    for place in _PLACES:
        if (checkout / place).is_file():
            return (checkout / place).resolve()
    raise UsageError(
        f"--hf-ptq: {checkout}: no {' and no '.join(_PLACES)} in it",
        mend="name the folder of a Model-Optimizer checkout, at the tag of the environment's ModelOpt",
    )


def _cannot(recipe: Recipe) -> str | None:
    if recipe.exporter != "modelopt-hf":
        return "is not made by ModelOpt"
    if recipe.scope != ("language_model",) or "vision" in recipe.kv_cache.attention:
        return "quantizes more than the language model, and hf_ptq.py does not"
    if recipe.calibration.modality != "text":
        return "calibrates on images, which hf_ptq.py drops for this model"
    if recipe.exclusions != "as-exported":
        return "spells its exclusions otherwise than ModelOpt does"
    return None
