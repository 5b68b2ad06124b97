"""The generate worker's own arithmetic and judgement, without vLLM."""

from __future__ import annotations

import json
import logging
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qvlfp8 import checkpoint as ck
from qvlfp8.reference.exam import make_exam
from qvlfp8.worker import fresh, generate, generate_faults, generate_fidelity, generate_gpu, generate_plants
from qvlfp8.worker.generate_engine import Reply, arguments
from qvlfp8.worker.generate_log import LogMarks
from qvlfp8.worker.generate_server import Server, ServerFailed, _options
from qvlfp8.worker.protocol import Refused
from tests.unit import checkpoints

pytestmark = pytest.mark.usefixtures("fast_disk")


def reply(*probabilities: float, text: str = "red") -> Reply:
    logprobs = {token: math.log(p) for token, p in enumerate(probabilities)}
    return Reply(text=text, ids=[1], logprobs=[logprobs], prompt_tokens=10, output_tokens=1)


def compared(tmp_path: Path, baseline: list[Reply], given: list[Reply]) -> dict[str, Any]:
    for folder in ("bf16", "fp8"):
        (tmp_path / folder).mkdir()
    assert generate_fidelity.compare(baseline, tmp_path / "bf16", None) is None
    found = generate_fidelity.compare(given, tmp_path / "fp8", tmp_path / "bf16")
    assert found is not None
    return found


def test_divergence_is_the_textbooks(tmp_path: Path) -> None:
    found = compared(
        tmp_path,
        [reply(0.5, 0.3, 0.2), reply(0.9, 0.05, 0.05)],
        [reply(0.2, 0.3, 0.5), reply(0.9, 0.05, 0.05)],
    )
    kl = 0.5 * math.log(0.5 / 0.2) + 0.2 * math.log(0.2 / 0.5)
    assert found["mean_kl"] == pytest.approx(kl / 2, abs=1e-6)
    assert found["max_kl"] == pytest.approx(kl, abs=1e-6)
    assert (found["positions"], found["not_finite"], found["top1_agreement"]) == (2, 0, 0.5)


def test_what_is_not_a_number_is_counted_and_left_out(tmp_path: Path) -> None:
    broken = Reply(
        text="", ids=[0], logprobs=[dict.fromkeys(range(3), math.nan)], prompt_tokens=1, output_tokens=1
    )
    found = compared(tmp_path, [reply(0.6, 0.4), reply(0.6, 0.4)], [broken, reply(0.6, 0.4)])
    assert (found["positions"], found["not_finite"], found["mean_kl"]) == (2, 1, 0.0)


def test_where_nothing_is_finite_there_is_no_divergence(tmp_path: Path) -> None:
    none = Reply(text="", ids=[1], logprobs=[{}], prompt_tokens=1, output_tokens=1)
    found = compared(tmp_path, [reply(0.6, 0.4)], [none])
    assert (found["not_finite"], found["mean_kl"], found["top1_agreement"]) == (1, None, None)


def test_the_rest_of_a_large_vocabulary_is_one_more_token(tmp_path: Path) -> None:
    found = compared(tmp_path, [reply(0.5, 0.3)], [reply(0.5, 0.1)])
    kl = 0.3 * math.log(3) + 0.2 * math.log(0.2 / 0.4)
    assert found["mean_kl"] == pytest.approx(kl, abs=1e-6)


def test_answers_are_compared_up_to_their_first_difference(tmp_path: Path) -> None:
    def said(*ids: int) -> Reply:
        return Reply(
            text="", ids=list(ids), logprobs=[{0: math.log(0.5), 1: math.log(0.5)}] * len(ids),
            prompt_tokens=1, output_tokens=len(ids),
        )  # fmt: skip

    found = compared(tmp_path, [said(7, 8, 9), said(5), said(1, 2)], [said(7, 3, 9), said(5, 6), said(1, 2)])
    assert found["positions"] == 2 + 1 + 2
    assert generate_fidelity._comparable([[7, 3, 9], [5, 6]], [[7, 8], [5]]) == ([0, 1, 3], [0, 1, 2])


def test_rows_are_written_likeliest_first(tmp_path: Path) -> None:
    generate_fidelity.compare([reply(0.2, 0.7, 0.1)], tmp_path, None)
    assert np.load(tmp_path / generate.TOKENS).tolist() == [[1, 0, 2]]
    assert np.load(tmp_path / generate.LOGPROBS).dtype == np.float32


def test_a_baseline_that_gave_no_answers_is_none(tmp_path: Path) -> None:
    assert generate_fidelity.compare([reply(0.5, 0.5)], tmp_path, tmp_path / "bf16") is None


def test_answers_are_those_of_both_pictures() -> None:
    exam = make_exam(1, 1)
    prompts = list(generate._prompts(exam))
    assert len(prompts) == len(exam) + sum(question.sight for question in exam)
    answers = generate._answers(prompts, [reply(0.5, 0.5, text=str(n)) for n in range(len(prompts))])
    assert [answer["id"] for answer in answers] == [question.id for question in exam]
    assert (answers[0]["answer"], answers[0]["swapped_answer"]) == ("0", "1")
    assert answers[-1]["swapped_answer"] is None


def test_questions_without_a_picture_come_first_and_replies_in_order() -> None:
    class Model:
        def __init__(self) -> None:
            self.asked: list[list[bool]] = []

        def ask(self, prompts: list[generate.Prompt]) -> list[Reply]:
            self.asked.append([prompt.question.sight for prompt in prompts])
            return [reply(1.0, text=prompt.question.id) for prompt in prompts]

    model, prompts = Model(), list(generate._prompts(make_exam(1, 1)))
    replies, _ = generate._ask(model, prompts)
    assert [said.text for said in replies] == [prompt.question.id for prompt in prompts]
    warm, first, warm_sight, second = model.asked
    assert (warm, warm_sight) == ([False], [True])
    assert (set(first), set(second)) == ({False}, {True})


@pytest.mark.parametrize(
    ("error", "origin"),
    [
        (KeyError("blocks.0.attn.k_proj.k_scale"), "checkpoint"),
        (ValueError("There is no module or parameter named 'x'"), "checkpoint"),
        (RuntimeError("mat2 shape (160x3420) must be divisible by 16"), "checkpoint"),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), "checkpoint"),
        (OSError("Can't load the configuration of 'x'"), "checkpoint"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "environment"),
        (ValueError("No available memory for the cache blocks."), "environment"),
        (AssertionError("Error in memory profiling. Initial free memory 138 GiB"), "environment"),
        (ValueError("Failed to find a kernel that can implement the NVFP4 linear layer."), "environment"),
        (RuntimeError("Failed to find C compiler"), "environment"),
        (RuntimeError("operator expected at most 0 argument(s)"), "environment"),
        (ModuleNotFoundError("No module named 'xformers'"), "environment"),
        (OSError(28, "No space left on device"), "environment"),
        (NotImplementedError("FP8 KV cache on CPU"), "environment"),
        (AttributeError("'NoneType' has no attribute 'x'"), "environment"),
    ],
)
def test_whose_fault_an_exception_is(error: Exception, origin: str) -> None:
    assert generate_faults.describe(error, stage="load")["origin"] == origin


def test_lines_that_matter_are_kept_once_for_all_layers() -> None:
    logger = logging.getLogger("vllm.some.module")
    logger.setLevel(logging.INFO)
    with LogMarks() as marks:
        for layer in range(3):
            logger.warning("layers.%d.k_scale is not there", layer)
        logger.info("Using KV cache scaling factor %s for fp8_e4m3.", 1.0)
        logger.info("unrelated")
        logging.getLogger("other").warning("k_scale")
    assert marks.lines == ["layers.*.k_scale is not there", "Using KV cache scaling factor 1.0 for fp8_e4m3."]
    logger.info("k_scale afterwards")
    assert len(marks.lines) == 2


def test_lines_of_a_servers_log_lose_what_stands_before_them() -> None:
    marks = LogMarks()
    marks.look("(Worker pid=7) WARNING 11-22 07:29:20 [utils.py:597] falling back to x\nother")
    assert marks.lines == ["falling back to x"]


def test_vllm_is_started_as_the_checkpoint_needs(tmp_path: Path) -> None:
    held = ck.read(checkpoints.lm_fp8(tmp_path / "lm"))
    options = {"device": "cpu", "enforce_eager": True, "kv_cache_dtype": "auto", "door": "engine"}
    asked = arguments(held, options)
    assert "quantization" not in asked
    assert (asked["max_logprobs"], asked["enforce_eager"], asked["kv_cache_dtype"]) == (16, True, "auto")
    (tmp_path / "lm" / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "FP8"}}')
    config = json.loads((tmp_path / "lm" / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "lm" / "config.json").write_text(json.dumps(config))
    assert arguments(ck.read(tmp_path / "lm"), options)["quantization"] == "modelopt"


def test_the_servers_options_are_the_classes() -> None:
    named = {
        "model": "m",
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "limit_mm_per_prompt": {"image": 1},
    }
    assert _options(named) == [
        "--model", "m", "--enforce-eager", "--no-enable-prefix-caching",
        "--limit-mm-per-prompt", '{"image": 1}',
    ]  # fmt: skip


def test_a_server_that_ends_at_once_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "python"
    broken.write_text(
        "#!/bin/sh\necho \"(Worker pid=3) ERROR 11-22 07:00:00 [a.py:1] KeyError: 'x'\"\nexit 3\n"
    )
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    held = ck.read(checkpoints.lm_fp8(tmp_path / "lm"))
    options = {"device": "cpu", "enforce_eager": True, "kv_cache_dtype": "auto", "door": "server"}
    with pytest.raises(ServerFailed, match=r"exit code 3: KeyError: 'x'$"), Server(held, options, tmp_path):
        pass


def test_an_unknown_plant_is_refused() -> None:
    with pytest.raises(Refused, match="window-order"), generate_plants.planted("no-such"):
        pass
    with generate_plants.planted(None):
        pass


def test_a_gpu_without_its_driver_is_the_machines_fault(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OSError, match="nvidia-smi"):
        generate_gpu.share(0)
    program.write_text("#!/bin/sh\necho '81559'\n")
    program.chmod(0o755)
    assert generate_gpu.share(0) == pytest.approx(0.074)
    assert generate_gpu.share(10**12) == 0.9


def test_a_process_of_its_own_returns_what_was_measured(tmp_path: Path) -> None:
    checkpoint = checkpoints.lm_fp8(tmp_path / "lm")
    out = tmp_path / "out"
    out.mkdir()
    measured = fresh.run("inspect", {"checkpoint": str(checkpoint), "recipe": None}, out)
    assert measured["digest"] == ck.folder_digest(checkpoint)
    with pytest.raises(Refused):
        fresh.run("inspect", {"checkpoint": str(tmp_path / "nothing"), "recipe": None}, out)


def test_each_gpu_has_a_lock_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import fcntl

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def is_free(gpu: str) -> bool:
        with (tmp_path / f"qvlfp8-gpu-{gpu}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with generate_gpu.one_at_a_time("cuda"):
        assert not is_free("1")
        assert is_free("0")
    assert is_free("1")
