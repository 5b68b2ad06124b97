"""One vLLM on one checkpoint: what it answers, how far its log-probabilities are from BF16's, how fast it is.

Random weights speak nonsense, so no answer is right or wrong. What is measured: that there are answers, that
log-probabilities change with the picture as BF16's do, and how far they are from BF16's on *forced* tokens
(the same conversation for both, so that one token that tips over does not end the comparison).
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.real_sizes import told
from qvlfp8 import checkpoint as ck
from qvlfp8.reference.tokenizer import TOKEN_IDS
from qvlfp8.worker import generate
from qvlfp8.worker.generate_engine import arguments, messages
from qvlfp8.worker.generate_log import LogMarks

if TYPE_CHECKING:
    from numpy.typing import NDArray

TOP = 256
"""Log-probabilities of a position that are compared; the rest of the vocabulary counts as one more token."""

LENGTH = 2048
"""Longest sequence: the largest picture (1,369 tokens) and what is said about it."""

ANSWER_TOKENS = 16
SIDE = 448
"""Pictures of the exam are enlarged to about this many pixels."""

ROWS, TOKENS, KINDS, ANSWERS = "logprobs.npy", "tokens.npy", "kinds.json", "answers.json"
"""Of the forced positions: log-probabilities, their tokens, and to which kind of prompt each belongs."""

KIND_TEXT, KIND_PICTURE, KIND_SWAPPED = "text", "picture", "swapped"


def work(spec: dict[str, Any], out: Path) -> dict[str, Any]:
    """Serve ``spec["checkpoint"]``; ``spec["do"]`` is ``answers`` or ``speed``."""
    options = {
        "device": spec["device"],
        "door": "engine",
        "enforce_eager": spec["eager"],
        "kv_cache_dtype": "auto",
    }
    facts = generate.prepare([{"checkpoint": spec["checkpoint"], "options": options}])
    if "fault" in facts:
        raise RuntimeError(f"vLLM cannot be used here: {facts['fault']}")
    checkpoint = ck.read(Path(spec["checkpoint"]))
    measured: dict[str, Any] = {"environment": facts}
    with LogMarks() as marks:
        started = time.monotonic()
        model = _start(checkpoint, options, spec["do"])
        measured["load"] = {"seconds": round(time.monotonic() - started, 2), **_weights(model, marks.lines)}
        measured["kv_cache_dtype"] = str(model.llm_engine.vllm_config.cache_config.cache_dtype)
        if spec["do"] == "answers":
            measured |= _answers(model, out, Path(spec["baseline"]) if spec["baseline"] else None)
        else:
            measured["speed"] = _speed(model, spec["speed"])
    measured["log_marks"] = marks.lines
    if spec["device"] == "cuda":
        import torch

        measured["peak_gpu_mb"] = torch.cuda.max_memory_allocated() // 1_000_000
    return measured


def _start(checkpoint: ck.Checkpoint, options: Mapping[str, Any], do: str) -> Any:
    if options["enforce_eager"] and options["device"] == "cpu":
        # Eager for the model; vLLM's sampler would still compile C++ at its first use.
        import torch._dynamo

        torch._dynamo.config.disable = True
    from vllm import LLM

    asked = arguments(checkpoint, options) | {
        "max_model_len": LENGTH,
        "max_logprobs": TOP,
        # A picture that was seen before would cost nothing.
        "mm_processor_cache_gb": 0,
    }
    if options["device"] == "cuda":
        asked["gpu_memory_utilization"] = 0.5 if do == "answers" else 0.85
    if do == "answers":
        # Log-probabilities of a prompt are made a step at a time, over the whole vocabulary.
        asked["max_num_batched_tokens"] = LENGTH
    return LLM(**asked)


def _weights(model: Any, lines: Iterable[str]) -> dict[str, Any]:
    """Bytes of the model's parameters and buffers, and what vLLM's own log says of them."""
    said = next((m for line in lines if (m := re.search(r"oading took ([\d.]+) GiB", line))), None)
    return {
        "weights_mb": round(sum(model.apply_model(_nbytes)) / 1e6, 1),
        "weights_gib_said": float(said[1]) if said else None,
    }


def _nbytes(module: Any) -> int:
    held = {t.data_ptr(): t.nbytes for t in (*module.parameters(), *module.buffers())}
    return sum(held.values())


# --- answers ------------------------------------------------------------------------------------------------


def _answers(model: Any, out: Path, baseline: Path | None) -> dict[str, Any]:
    prompts = list(_prompts())
    said = _ask(model, [messages(prompt) for _, prompt in prompts])
    kinds = [kind for kind, _ in prompts]
    (out / ANSWERS).write_text(json.dumps(said), encoding="utf-8")
    rows = _forced(model, prompts, out)
    theirs = json.loads((baseline / ANSWERS).read_text(encoding="utf-8")) if baseline else None
    pairs = [(said[n], said[n + 1]) for n, kind in enumerate(kinds) if kind == KIND_PICTURE]
    return {
        "answers": {
            "prompts": {kind: kinds.count(kind) for kind in (KIND_TEXT, KIND_PICTURE, KIND_SWAPPED)},
            "empty": sum(not ids for ids in said),
            "changed_by_picture": sum(own != other for own, other in pairs),
            "as_bf16": sum(a == b for a, b in zip(said, theirs, strict=True)) if theirs else None,
            "first_tokens_as_bf16": (
                sum(a[:1] == b[:1] for a, b in zip(said, theirs, strict=True)) if theirs else None
            ),
        },
        **_compared(rows, baseline),
    }


def _prompts() -> Iterator[tuple[str, generate.Prompt]]:
    from qvlfp8.reference.exam import make_exam

    for question in make_exam(2026, 2):
        if not question.sight:
            yield KIND_TEXT, generate.Prompt(question=question, swapped=False)
            continue
        assert question.picture is not None
        assert question.swapped is not None
        large = dataclasses.replace(
            question, picture=_enlarged(question.picture), swapped=_enlarged(question.swapped)
        )
        yield KIND_PICTURE, generate.Prompt(question=large, swapped=False)
        yield KIND_SWAPPED, generate.Prompt(question=large, swapped=True)


def _enlarged(picture: NDArray[Any]) -> NDArray[Any]:
    times = max(1, SIDE // max(picture.shape[:2]))
    return picture.repeat(times, axis=0).repeat(times, axis=1)


def _ask(model: Any, talks: Sequence[list[dict[str, Any]]]) -> list[list[int]]:
    from vllm import SamplingParams

    greedy = SamplingParams(temperature=0.0, max_tokens=ANSWER_TOKENS, detokenize=False)
    outputs = model.chat(list(talks), greedy, use_tqdm=False)
    return [[int(token) for token in output.outputs[0].token_ids] for output in outputs]


def _forced(model: Any, prompts: Sequence[tuple[str, generate.Prompt]], out: Path) -> Mapping[str, Any]:
    """The log-probabilities of words put into its mouth, after the picture; written below ``out``."""
    import numpy as np
    from vllm import SamplingParams

    talks = [
        [
            *messages(prompt),
            {"role": "assistant", "content": f"It is {prompt.question.answer}, as one sees at once."},
            {"role": "user", "content": "Are you sure? Please look at it again, and explain your answer."},
        ]
        for _, prompt in prompts
    ]
    once = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=TOP, detokenize=False)
    logprobs: list[list[float]] = []
    tokens: list[list[int]] = []
    kinds: list[str] = []
    for (kind, _), output in zip(prompts, model.chat(talks, once, use_tqdm=False), strict=True):
        ids = list(output.prompt_token_ids)
        pad = TOKEN_IDS["<|image_pad|>"]
        start = max((place for place, token in enumerate(ids) if token == pad), default=0) + 1
        for step in output.prompt_logprobs[start:]:
            ordered = sorted(((e.logprob, token) for token, e in step.items()), key=lambda p: (-p[0], p[1]))
            logprobs.append([value for value, _ in ordered[:TOP]])
            tokens.append([token for _, token in ordered[:TOP]])
            kinds.append(kind)
    np.save(out / ROWS, np.array(logprobs, dtype=np.float32))
    np.save(out / TOKENS, np.array(tokens, dtype=np.int32))
    (out / KINDS).write_text(json.dumps(kinds), encoding="utf-8")
    return _rows(out)


def _rows(folder: Path) -> Mapping[str, Any]:
    """Log-probabilities and tokens by kind of prompt."""
    import numpy as np

    logprobs, tokens = np.load(folder / ROWS), np.load(folder / TOKENS)
    kinds = np.array(json.loads((folder / KINDS).read_text(encoding="utf-8")))
    return {
        kind: (logprobs[kinds == kind], tokens[kinds == kind])
        for kind in (KIND_TEXT, KIND_PICTURE, KIND_SWAPPED)
    }


def _compared(ours: Mapping[str, Any], baseline: Path | None) -> dict[str, Any]:
    import numpy as np

    from qvlfp8.worker.generate_fidelity import divergence

    found: dict[str, Any] = {
        # How much the picture matters: the same words about another picture.
        "sight": divergence(ours[KIND_PICTURE], ours[KIND_SWAPPED]),
        "not_finite": int(sum((~np.isfinite(rows[0])).any(axis=1).sum() for rows in ours.values())),
        "largest_probability": round(
            float(np.mean(np.exp(np.concatenate([rows[0][:, 0] for rows in ours.values()])))), 3
        ),
    }
    if baseline is not None:
        theirs = _rows(baseline)
        found["fidelity"] = {kind: divergence(theirs[kind], ours[kind]) for kind in (KIND_TEXT, KIND_PICTURE)}
        found["sight_of_bf16"] = divergence(theirs[KIND_PICTURE], theirs[KIND_SWAPPED])
    return found


# --- speed --------------------------------------------------------------------------------------------------


def _speed(model: Any, asked: Mapping[str, Any]) -> dict[str, Any]:
    repeats = asked["repeats"]
    return {
        "prefill": [_prefill(model, side, asked["pictures"], repeats) for side in asked["sides"]],
        "decode": [_decode(model, batch, asked["tokens"], repeats) for batch in asked["batches"]],
    }


def _prefill(model: Any, side: int, count: int, repeats: int) -> dict[str, Any]:
    """``count`` pictures and a question each, one token of answer; the first round is not counted.

    ``engine`` is vLLM's engine alone; ``whole`` has the host's preparation of the pictures as well.
    """
    from vllm import SamplingParams

    once = SamplingParams(temperature=0.0, max_tokens=1, detokenize=False)
    engine = model.llm_engine
    whole, inside, tokens = [], [], 0
    for turn in range(repeats + 1):
        prompts = [_picture_prompt(f"{side}/{turn}/{number}", side) for number in range(count)]
        started = time.perf_counter()
        for number, prompt in enumerate(prompts):
            engine.add_request(f"prefill-{side}-{turn}-{number}", prompt, once)
        ready = time.perf_counter()
        tokens = 0
        while engine.has_unfinished_requests():
            tokens += sum(len(o.prompt_token_ids) for o in engine.step() if o.finished)
        ended = time.perf_counter()
        if turn:
            whole.append(count / (ended - started))
            inside.append(count / (ended - ready))
    return {
        "side": side,
        "pictures": count,
        "tokens": tokens,
        "whole": _summary(whole),
        "engine": _summary(inside),
    }


def _picture_prompt(seed: str, side: int) -> dict[str, Any]:
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(list(seed.encode())).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return {
        "prompt": (
            "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What is this?<|im_end|>\n"
            "<|im_start|>assistant\n"
        ),
        "multi_modal_data": {"image": Image.fromarray(noise)},
    }


def _decode(model: Any, batch: int, tokens: int, repeats: int) -> dict[str, Any]:
    """``tokens`` tokens each for ``batch`` prompts of 32 tokens."""
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": [(7 * n + 3 * place) % 256 for place in range(32)]} for n in range(batch)]

    def once(count: int) -> float:
        asked = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True, detokenize=False)
        started = time.perf_counter()
        outputs = model.generate(prompts, asked, use_tqdm=False)
        seconds = time.perf_counter() - started
        assert all(len(output.outputs[0].token_ids) == count for output in outputs)
        return seconds

    once(min(tokens, 32))
    return {
        "batch": batch,
        "tokens": tokens,
        "tokens_per_second": _summary([batch * tokens / once(tokens) for _ in range(repeats)]),
    }


def _summary(values: Sequence[float]) -> dict[str, Any]:
    return {
        "median": round(statistics.median(values), 2),
        "least": round(min(values), 2),
        "most": round(max(values), 2),
        "runs": len(values),
    }


if __name__ == "__main__":
    # vLLM's threads need not be waited for: everything is written.
    os._exit(told.main(work))
