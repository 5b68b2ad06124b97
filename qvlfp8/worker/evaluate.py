"""The evaluate worker: what any checkpoint of ours answers, by transformers' own forward pass.

An FP8 checkpoint is scored by its weights alone: they are multiplied by their scales, activations
stay as they are. So a fault in how a server reads the checkpoint does not show here; a fault in the
checkpoint's weights does.
"""

from __future__ import annotations

import inspect
import json
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qvlfp8 import checkpoint, structure
from qvlfp8.checkpoint import CONFIG, WEIGHTS, NotACheckpoint, Tensor, write_safetensors
from qvlfp8.reference.exam import CHANCE, exam_digest, make_exam
from qvlfp8.reference.tokenizer import TOKEN_IDS
from qvlfp8.worker import scores
from qvlfp8.worker.protocol import Refused

PATCH = 14


def prepare(jobs: list[dict[str, Any]]) -> dict[str, Any]:
    """Import what every job needs and say the versions; starts no CUDA, which survives no fork."""
    del jobs  # all need the same
    import numpy
    import torch
    import transformers

    _ = transformers.Qwen2_5_VLForConditionalGeneration
    return {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
    }


def run(params: dict[str, Any], out: Path) -> dict[str, Any]:
    """Score ``params["checkpoint"]``, a folder in BF16 or as ModelOpt exports FP8.

    Args:
        params: ``checkpoint``; ``exam``, its ``seed`` and ``per_task``; ``ablations``, whether to
            score the broken model too; ``dtype``, ``"bfloat16"`` or ``"float32"`` (arithmetic
            alone; few CPUs are quick at BF16), if absent by device.
        out: an existing folder, for what is left after dequantizing.

    Returns:
        ``accuracy`` and ``chance`` by task, ``ablations`` by fault and task, digests of checkpoint
        and exam, device, type, seconds.

    Raises:
        Refused: ``not-a-checkpoint`` or ``unknown-model``.
    """
    import torch

    started = time.monotonic()
    folder = Path(params["checkpoint"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = params.get("dtype") or ("bfloat16" if device.type == "cuda" else "float32")
    questions = make_exam(**params["exam"])
    with _plain(folder, out) as plain:
        model = _load(plain).to(device, getattr(torch, dtype)).eval()
        depth = len(model.model.visual.blocks)
        kinds = scores.faults(depth) if params.get("ablations") else {"intact": scores.Fault()}
        examinee = Examinee(model, _standard(plain), device)
        rows = scores.table(questions, kinds, examinee.say)
    return {
        "checkpoint_digest": checkpoint.folder_digest(folder),
        "exam_digest": exam_digest(questions),
        "exam": params["exam"],
        "accuracy": rows.pop("intact"),
        "chance": dict(CHANCE),
        "ablations": rows,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "dtype": dtype,
        "seconds": round(time.monotonic() - started, 1),
    }


@contextmanager
def _plain(folder: Path, out: Path) -> Iterator[Path]:
    """The folder itself if it is not quantized, else one beside it with its weights in BF16."""
    try:
        found = checkpoint.read(folder)
        model = structure.from_config(found.config)
    except NotACheckpoint as error:
        raise Refused("not-a-checkpoint", str(error)) from error
    except structure.UnknownModel as error:
        raise Refused("unknown-model", f"{folder}: {error}") from error
    if found.quantization is None:
        yield folder
        return
    target = Path(tempfile.mkdtemp(prefix=".plain-", dir=out))
    try:
        config = {name: value for name, value in found.config.items() if name != "quantization_config"}
        (target / CONFIG).write_text(json.dumps(config), encoding="utf-8")
        shutil.copyfile(folder / "preprocessor_config.json", target / "preprocessor_config.json")
        tensors = {structure.canonical(name): tensor for name, tensor in found.tensors.items()}
        write_safetensors(
            target / WEIGHTS,
            (
                (name, "BF16", tensor.shape, _dequantized(tensor, tensors))
                for name, tensor in tensors.items()
                if name in model.shapes
            ),
            {"format": "pt"},
        )
        yield target
    finally:
        shutil.rmtree(target, ignore_errors=True)


def _dequantized(tensor: Tensor, tensors: Mapping[str, Tensor]) -> bytes:
    """A tensor's numbers in BF16; those in FP8 times their scale, of one number or one a row."""
    import torch

    data = checkpoint.read_bytes(tensor)
    if tensor.dtype == "BF16":
        return data
    value = _numbers(tensor.dtype, data).view(tensor.shape)
    if tensor.dtype == "F8_E4M3":
        scale = tensors.get(structure.canonical(tensor.name) + "_scale")
        if scale is None:
            raise Refused("not-a-checkpoint", f"{tensor.name} is FP8 and has no scale: export it again")
        factor = _numbers(scale.dtype, checkpoint.read_bytes(scale))
        value = value * (factor if factor.numel() == 1 else factor.view(-1, 1))
    plain: bytes = value.bfloat16().view(torch.int16).numpy().tobytes()
    return plain


def _numbers(dtype: str, data: bytes) -> Any:
    import torch

    types = {
        "F8_E4M3": torch.float8_e4m3fn, "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32,
    }  # fmt: skip
    if dtype not in types:
        raise Refused("not-a-checkpoint", f"a tensor is {dtype}: only BF16, F16, F32 and FP8 E4M3 are read")
    return torch.frombuffer(bytearray(data), dtype=types[dtype]).float()


def _load(folder: Path) -> Any:
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    model, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.bfloat16, use_safetensors=True, output_loading_info=True
    )
    if wrong := {kind: sorted(map(str, names)) for kind, names in info.items() if names}:
        raise Refused("not-a-checkpoint", f"{folder} does not fit its config.json: {wrong}")
    return model


def _standard(folder: Path) -> tuple[list[float], list[float]]:
    """Mean and deviation of the colours, as the folder's preprocessor has them."""
    config = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    return config["image_mean"], config["image_std"]


class Examinee:
    """A model of transformers, and how to break it."""

    def __init__(self, model: Any, standard: tuple[list[float], list[float]], device: Any) -> None:
        self._model, self._device = model, device
        self._mean, self._deviation = standard

    def say(self, pictures: Any, ids: Any, fault: scores.Fault) -> Any:
        """The likeliest next token at every place, as :data:`~qvlfp8.worker.scores.Say` has it."""
        with self._broken(fault):
            return self.logits(pictures, ids).argmax(-1).cpu().numpy()

    def logits(self, pictures: Any, ids: Any) -> Any:
        """What the model makes of arrays of pictures, or none, and ids: (rows, tokens, vocabulary)."""
        import torch

        tokens = torch.from_numpy(ids).to(self._device)
        # Without a mask transformers 4.56 takes an image's equal positions for packed sequences.
        asked: dict[str, Any] = {
            "input_ids": tokens,
            "attention_mask": torch.ones_like(tokens),
            "use_cache": False,
        }
        if pictures is not None:
            pixels, grid = self._patches(torch.from_numpy(pictures))
            asked |= {"pixel_values": pixels, "image_grid_thw": grid}
            # From 5.0 on transformers is told which tokens are an image's.
            if "mm_token_type_ids" in inspect.signature(self._model.forward).parameters:
                asked["mm_token_type_ids"] = (tokens == TOKEN_IDS["<|image_pad|>"]).int()
        with torch.no_grad():
            return self._model(**asked).logits

    def _patches(self, pictures: Any) -> tuple[Any, Any]:
        """What the published image processor makes of pictures: pixels (patches, 1176), grids."""
        import torch

        mean, deviation = torch.tensor(self._mean), torch.tensor(self._deviation)
        level = ((pictures.float() / 255 - mean) / deviation).permute(0, 3, 1, 2)
        count, _, height, width = level.shape
        rows, columns = height // PATCH, width // PATCH
        level = level[:, :, None].expand(-1, -1, 2, -1, -1)
        cut = level.reshape(count, 3, 2, rows // 2, 2, PATCH, columns // 2, 2, PATCH)
        pixels = cut.permute(0, 3, 6, 4, 7, 1, 2, 5, 8).reshape(count * rows * columns, -1)
        grid = torch.tensor([[1, rows, columns]] * count)
        return pixels.to(self._device, self._model.dtype), grid.to(self._device)

    @contextmanager
    def _broken(self, fault: scores.Fault) -> Iterator[None]:
        """Break the tower, and mend it again."""
        import torch

        visual = self._model.model.visual
        touched: list[Any] = []
        if fault.skipped_block is not None:
            block = visual.blocks[fault.skipped_block]
            touched = [*block.attn.proj.parameters(), *block.mlp.down_proj.parameters()]
        if fault.shuffled:
            touched = list(visual.parameters())
        kept = [value.data for value in touched]
        full = visual.fullatt_block_indexes
        source = torch.Generator().manual_seed(0)
        try:
            for value in touched:
                if fault.shuffled:
                    order = torch.randperm(value.numel(), generator=source).to(value.device)
                    value.data = value.data.flatten()[order].view(value.shape)
                else:
                    value.data = torch.zeros_like(value.data)
            if fault.all_windowed:
                visual.fullatt_block_indexes = []
            yield
        finally:
            visual.fullatt_block_indexes = full
            for value, old in zip(touched, kept, strict=True):
                value.data = old
