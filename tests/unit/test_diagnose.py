"""Messages that vLLM really gave get their finding; what the machine caused gets none."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvlfp8.diagnose import LONGEST_LINE, MOST_LINES, SHOWN, clean, diagnose
from qvlfp8.findings import KINDS
from qvlfp8.signs import SIGNS

NO_PLACE = (
    "ValueError: There is no module or parameter named 'blocks.0.attn.{}_proj' in Qwen2_5_VisionTransformer. "
    "The available parameters belonging to blocks.0.attn (Qwen2_5_VisionAttention) are: "
    "{{'blocks.0.attn.proj.input_scale', 'blocks.0.attn.qkv.bias', 'blocks.0.attn.qkv.weight_scale'}}"
)

REJECTED = (
    "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
    "  Value error, {} [type=value_error, input_value=ArgsKwargs((), {{'model': ...}}), input_type=Args]\n"
    "    For further information visit https://errors.pydantic.dev/2.14/v/value_error"
)

NO_ARCHITECTURES = """\
Traceback (most recent call last):
  File "/v/vllm/config.py", line 714, in architectures
    and all(arch != transformers_backend_cls
        ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
TypeError: 'NoneType' object is not iterable"""

# Only what is marked "recorded" was seen in a record here (names may be others); the rest follows the wording
# of vLLM's, transformers' and torch's sources.
EXAMPLES = (
    # recorded, vLLM 0.10.0 to 0.24.0
    ("stray-vision-kv-scale", "KeyError: 'blocks.0.attn.k_proj.k_scale'"),
    ("stray-vision-kv-scale", "KeyError: 'blocks.0.attn.v_proj.v_scale'"),
    # recorded, 0.26.0 to 0.33.0
    ("stray-vision-kv-scale", NO_PLACE.format("k")),
    ("stray-vision-kv-scale", NO_PLACE.format("v")),
    # recorded, 0.10.0 and 0.24.0
    ("language-kv-scale-unsupported", "KeyError: 'layers.0.self_attn.qkv_proj.k_scale'"),
    ("language-kv-scale-unsupported", "KeyError: 'layers.0.self_attn.qkv_proj.v_scale'"),
    (
        "language-kv-scale-unsupported",
        "TypeError: KVCacheScaleParameter.weight_loader() takes 2 positional arguments but 3 were given",
    ),
    # recorded, of a checkpoint whose scales have no layer to go to
    ("unexpected-tensor", "KeyError: 'layers.0.mlp.down_proj.input_scale'"),
    # not recorded
    ("unexpected-tensor", "KeyError: 'blocks.0.attn.k_proj.weight'"),
    (
        "unexpected-tensor",
        "ValueError: There is no module or parameter named 'model.layers.0.extra' in Qwen2ForCausalLM",
    ),
    (
        "unexpected-tensor",
        "ValueError: Attempted to load nested weight 'norm.weight.x' into a single parameter 'norm'",
    ),
    # recorded, 0.10.2 and 0.11.0; then 0.10.0
    ("config-rejected", REJECTED.format("No model architectures are specified")),
    ("config-rejected", NO_ARCHITECTURES),
    (
        "config-rejected",
        "ValueError: ModelOpt currently only supports: ['FP8', 'NVFP4'] quantizations in vLLM. Please check",
    ),
    ("config-rejected", REJECTED.format("Unknown quantization method: fp9. Must be one of ['awq', 'fp8'].")),
    (
        "config-rejected",
        REJECTED.format(
            "Quantization method specified in the model config (modelopt) does not match the quantization "
            "method specified in the `quantization` argument (fp8)."
        ),
    ),
    # recorded, 0.12.0 and 0.13.0
    (
        "not-generative",
        "ValueError: LLM.generate() is only supported for generative models. Try passing `--runner generate`",
    ),
    # recorded, 0.10.2 beside transformers 5
    (
        "packages-incompatible",
        REJECTED.format(
            "Found conflicts between 'rope_type=default' (modern field) and 'type=mrope' (legacy field). "
            "You should only specify one of them."
        ),
    ),
    (
        "missing-file",
        "OSError: Can't load image processor for '/models/q'. If you were trying to load it from 'https://",
    ),
    ("missing-file", "OSError: /models/q does not appear to have a file named preprocessor_config.json."),
    (
        "shape-mismatch",
        "AssertionError: Attempted to load weight (torch.Size([3, 4])) into parameter (torch.Size([4, 4]))",
    ),
    (
        "shape-mismatch",
        "AssertionError: Tried to load weights of size torch.Size([3])to a parameter of size torch.Size([4])",
    ),
    (
        "weight-never-loaded",
        "ValueError: Following weights were not initialized from checkpoint: {'visual.merger.ln_q.weight'}",
    ),
    ("kernel-refused", "RuntimeError: mat2 shape (3420x1280) must be divisible by 16"),
    (
        "kernel-refused",
        "RuntimeError: Expected trailing dimension of mat1 to be divisible by 16 but got mat1 shape: (1x3",
    ),
    # recorded, with an FP8 KV cache and no scales for it
    (
        "kv-scale-one",
        "Using KV cache scaling factor 1.0 for fp8_e4m3. If this is unintended, verify that k/v_scale",
    ),
)

MACHINE = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of 79.1 GiB",
    "RuntimeError: CUDA error: no kernel image is available for execution on the device",
    "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`.",
    "ValueError: Free memory on device (3.1/79.1 GiB) on startup is less than desired GPU memory utilization",
    "RuntimeError: No CUDA GPUs are available",
    "OSError: [Errno 28] No space left on device",
    "OSError: We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find",
    "ModuleNotFoundError: No module named 'flashinfer'",
    "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:3690, unhandled cuda error",
)

RED = "\x1b[31m"
PLAIN = "\x1b[0m"


def in_a_log(message: str) -> str:
    """The message as the engine's process logs it, before the server says that the engine failed."""
    error = f"{RED}(EngineCore_DP0 pid=7) ERROR 09-10 12:00:00 [core.py:718]{PLAIN} "
    lines = [
        "Traceback (most recent call last):",
        '  File "/v/vllm/x.py", line 3, in load',
        *message.split("\n"),
    ]
    return "\n".join(
        (
            "INFO 09-10 11:59:00 [api_server.py:1896] vLLM API server version 0.10.2",
            "INFO 09-10 11:59:30 [cuda.py:408] Using Flash Attention backend on V1 engine.",
            *(error + line for line in lines),
            "Traceback (most recent call last):",
            '  File "/v/vllm/entrypoints/llm.py", line 3, in __init__',
            "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
        )
    )


@pytest.mark.parametrize(("finding", "message"), EXAMPLES)
def test_each_message_gets_exactly_its_finding(finding: str, message: str) -> None:
    for text in (message, in_a_log(message)):
        diagnosis = diagnose(text)
        assert [named.id for named in diagnosis.findings] == [finding]
        assert diagnosis.known == (KINDS[finding].severity == "fail")
        assert not (diagnosis.known and diagnosis.decisive)


def test_every_signature_has_an_example() -> None:
    for kind_id, kind in SIGNS.items():
        examples = [clean(message) for finding, message in EXAMPLES if finding == kind_id]
        for signature in kind.signatures:
            pattern = re.compile(signature, re.MULTILINE)
            assert any(pattern.search("\n".join(lines)) for lines in examples), signature
    assert {finding for finding, _ in EXAMPLES} == {name for name, kind in SIGNS.items() if kind.signatures}


@pytest.mark.parametrize("message", MACHINE)
def test_a_fault_of_the_machine_is_no_finding(message: str) -> None:
    for text in (message, in_a_log(message)):
        diagnosis = diagnose(text)
        assert (diagnosis.findings, diagnosis.known, diagnosis.machine) == ((), False, True)
        assert message[:60] in diagnosis.decisive[0].text


def test_lines_are_numbered_and_the_version_is_read() -> None:
    diagnosis = diagnose(in_a_log("KeyError: 'blocks.0.attn.k_proj.k_scale'"))
    [named] = diagnosis.findings
    assert [(line.number, line.text) for line in named.lines] == [
        (5, "KeyError: 'blocks.0.attn.k_proj.k_scale'")
    ]
    assert diagnosis.vllm == "0.10.2"
    started = "INFO 01-01 00:00:00 [core.py:76] Initializing a V1 LLM engine (v0.26.0) with config: x"
    assert diagnose(started).vllm == "0.26.0"
    assert diagnose("transformers version 4.57.6").vllm is None


def test_a_signature_over_lines_points_at_the_last() -> None:
    [named] = diagnose(NO_ARCHITECTURES).findings
    assert named.lines[0].number == 5


def test_many_lines_of_one_finding_are_counted() -> None:
    [named] = diagnose("KeyError: 'blocks.3.attn.v_proj.v_scale'\n" * 40).findings
    assert (len(named.lines), named.total, named.lines[-1].number) == (MOST_LINES, 40, MOST_LINES)


def test_what_fails_comes_before_what_is_noted() -> None:
    note = dict(EXAMPLES)["kv-scale-one"]
    found = diagnose(f"{note}\nKeyError: 'blocks.0.attn.k_proj.k_scale'").findings
    assert [named.id for named in found] == ["stray-vision-kv-scale", "kv-scale-one"]


def test_an_unknown_failure_shows_the_root_not_what_followed_from_it() -> None:
    chain = (
        "IndexError: the root\n\nDuring handling of the above exception, another exception occurred:\n\n"
        "Traceback (most recent call last):\nValueError: what followed"
    )
    shown = [line.text for line in diagnose(chain).decisive]
    assert shown == ["IndexError: the root"]
    logged = diagnose(in_a_log("IndexError: the root"))
    assert [line.text for line in logged.decisive] == ["IndexError: the root"]
    errors = diagnose("ERROR 09-10 12:00:00 [x.py:1] this went wrong\nINFO 09-10 12:00:01 [x.py:2] fine")
    assert [line.text for line in errors.decisive] == ["this went wrong"]
    assert diagnose("").decisive == diagnose("all is well\n").decisive == ()


def test_a_terminal_is_told_nothing_by_a_log() -> None:
    evil = "ValueError: \x1b]0;title\x07a\x1b[2Jb\x08\x9b31mc\u202ed\r"
    [line] = diagnose(evil).decisive
    assert line.text.isprintable()
    [line] = diagnose("ValueError: " + "x" * LONGEST_LINE).decisive
    assert len(line.text) == SHOWN + 1


@given(st.text())
def test_any_text_is_diagnosed(text: str) -> None:
    diagnosis = diagnose(text)
    assert all(line.text.isprintable() for line in diagnosis.decisive)
    assert all(line == "" or line.isprintable() for line in clean("\x1b[1m\x00"))


PIECES = (
    "KeyError: '",
    "blocks.0",
    ".attn.k_proj",
    "layers.1.self_attn.",
    "k_scale",
    "_scale",
    "'",
    "\n",
    "\x1b[",
)


@given(
    st.lists(st.sampled_from((*PIECES, "in architectures\n", "Error: ", "ERROR ", "a.", "(")), max_size=60)
)
def test_text_made_of_signatures_pieces_is_diagnosed(pieces: list[str]) -> None:
    diagnose("".join(pieces))


@pytest.mark.parametrize(
    "unit",
    [
        *PIECES,
        "a.",
        "a",
        "(",
        "\x1b]",
        "KeyError: 'layers.1.self_attn.",
        "in architectures\n",
        "A.",
        "Error",
        "vLLM ",
    ],
)
def test_no_signature_is_slow_on_what_nearly_matches(unit: str) -> None:
    started = time.process_time()
    diagnose(unit * (400_000 // len(unit)))
    assert time.process_time() - started < 5
