"""vLLM's own Python class, ``LLM``, asked through its chat method."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from qvlfp8 import checkpoint as ck
from qvlfp8.worker import generate_gpu

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qvlfp8.worker.generate import Prompt

MAX_TOKENS = 16
"""Longest answer in tokens."""

WHOLE_VOCABULARY = 4096
"""Up to this many tokens a vocabulary's log-probabilities are recorded whole."""

FEW = 20
"""Log-probabilities recorded of a larger vocabulary: what vLLM gives without being told otherwise."""

_MAX_LENGTH = 1024
_SEQUENCES = 64
"""Answered at a time."""

_CPU_BLOCKS = 512
"""The KV cache on a CPU, in blocks of 128 tokens: room for as many sequences of the longest length."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a model said: text, token ids, and for each of them the log-probabilities by id."""

    text: str
    ids: list[int]
    logprobs: list[dict[int, float]]
    prompt_tokens: int
    output_tokens: int


def arguments(checkpoint: ck.Checkpoint, options: Mapping[str, Any]) -> dict[str, Any]:
    """What vLLM is started with, by the names of its Python class."""
    found: dict[str, Any] = {
        "model": str(checkpoint.root),
        "dtype": "bfloat16",
        "seed": 0,
        "max_model_len": min(_MAX_LENGTH, _positions(checkpoint.config)),
        "max_num_seqs": _SEQUENCES,
        "enforce_eager": options["enforce_eager"],
        "kv_cache_dtype": options["kv_cache_dtype"],
        "limit_mm_per_prompt": {"image": 1, "video": 0},
        # An answer must not depend on what was asked before it.
        "enable_prefix_caching": False,
        "max_logprobs": _logprobs(checkpoint.config),
    }
    if checkpoint.quantization_source == ck.HF_QUANT_CONFIG:
        found["quantization"] = "modelopt"
    if options["device"] == "cuda":
        found["gpu_memory_utilization"] = generate_gpu.share(checkpoint.nbytes)
    else:
        found["num_gpu_blocks_override"] = _CPU_BLOCKS
    return found


def messages(prompt: Prompt) -> list[dict[str, Any]]:
    """The question as a chat of one message, its picture as a data URL."""
    question = prompt.question
    picture = question.swapped if prompt.swapped else question.picture
    if picture is None:
        return [{"role": "user", "content": question.prompt}]
    parts = [
        {"type": "image_url", "image_url": {"url": data_url(picture)}},
        {"type": "text", "text": question.prompt},
    ]
    return [{"role": "user", "content": parts}]


def data_url(picture: NDArray[Any]) -> str:
    """Encode a picture of height, width, 3 bytes as PNG, which loses nothing."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


class Engine:
    """vLLM in this process, greedy; a context manager.

    It is not taken down: its process ends soon after, and faster so.
    """

    def __init__(self, checkpoint: ck.Checkpoint, options: Mapping[str, Any]) -> None:
        self._checkpoint = checkpoint
        self._options = options
        self._model: Any = None
        self.facts: dict[str, Any] = {}

    def __enter__(self) -> Engine:
        if self._options["enforce_eager"] and self._options["device"] == "cpu":
            # Eager for the model; vLLM's sampler would still compile C++ at its first use.
            import torch._dynamo

            torch._dynamo.config.disable = True
        from vllm import LLM

        asked = arguments(self._checkpoint, self._options)
        self._model = LLM(**asked)
        config = self._model.llm_engine.vllm_config
        self.facts = {
            "kv_cache_dtype": str(config.cache_config.cache_dtype),
            "quantization": _text_or_none(config.model_config.quantization),
            "arguments": {name: value for name, value in asked.items() if name != "model"},
        }
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def ask(self, prompts: Sequence[Prompt]) -> list[Reply]:
        """Ask all prompts; replies come in their order."""
        from vllm import SamplingParams

        sampling = SamplingParams(
            temperature=0.0,
            max_tokens=MAX_TOKENS,
            logprobs=_logprobs(self._checkpoint.config),
            # Text is made from the ids below: vLLM would make it for every log-probability as well.
            detokenize=False,
        )
        tokenizer = self._model.get_tokenizer()
        outputs = self._model.chat([messages(prompt) for prompt in prompts], sampling, use_tqdm=False)
        return [_reply(output, tokenizer) for output in outputs]

    def marks(self) -> list[str]:
        """What vLLM logs here is seen by the process itself."""
        return []


def _reply(output: Any, tokenizer: Any) -> Reply:
    said = output.outputs[0]
    ids = [int(token) for token in said.token_ids]
    return Reply(
        text=tokenizer.decode(ids, skip_special_tokens=True).strip(),
        ids=ids,
        logprobs=[
            {int(token): float(entry.logprob) for token, entry in step.items()}
            for step in said.logprobs or ()
        ],
        prompt_tokens=len(output.prompt_token_ids),
        output_tokens=len(ids),
    )


def _logprobs(config: Mapping[str, Any]) -> int:
    vocabulary = _of_text(config, "vocab_size")
    return vocabulary if vocabulary is not None and vocabulary <= WHOLE_VOCABULARY else FEW


def _positions(config: Mapping[str, Any]) -> int:
    return _of_text(config, "max_position_embeddings") or _MAX_LENGTH


def _of_text(config: Mapping[str, Any], key: str) -> int | None:
    """A number of the language model: transformers 5 writes it into ``text_config`` alone."""
    for section in (config, config.get("text_config") or {}):
        if isinstance(section.get(key), int):
            return int(section[key])
    return None


def _text_or_none(value: object) -> str | None:
    return None if value is None else str(value)
