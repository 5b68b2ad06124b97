"""What has to be changed in ModelOpt so that it packs every format where there is no GPU, too."""

from __future__ import annotations


def pack_nvfp4_without_a_gpu() -> None:
    """Have NVFP4 packed by ModelOpt's own code in torch where there is no CUDA.

    Packing asks which GPU there is, to choose a faster kernel, and ends with an exception where there is
    none (``fp4_compatible``, seen in ModelOpt 0.37 to 0.47).

    Raises:
        AttributeError: this ModelOpt has no such question any more.
    """
    import torch
    from modelopt.torch.quantization.qtensor import nvfp4_tensor

    if torch.cuda.is_available():
        return
    if not hasattr(nvfp4_tensor, "fp4_compatible"):
        raise AttributeError(f"{nvfp4_tensor.__name__} has no 'fp4_compatible' any more")
    nvfp4_tensor.fp4_compatible = lambda: False
