"""What a step's container may do, decided without a daemon."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvlfp8.engine.docker_daemon import Facts
from qvlfp8.engine.docker_plan import (
    STEP_USER,
    Bind,
    Container,
    Limits,
    User,
    binds,
    code_of,
    deadline,
    gpus,
    limited,
    may_read,
)

GB = 1 << 30
PLAIN = Facts(memory=8 * GB)


def container(*, gpus: tuple[str, ...] = (), remapped: bool = False) -> Container:
    return Container(
        image="sha256:1",
        command=("timeout", "9", "python", "spec.json"),
        variables={"A": "b c"},
        binds=binds([Path("/in")], [Path("/o")]),
        user=User.of(PLAIN, 1000, 100),
        limits=Limits(memory=2 * GB, pids=7, shared_memory=GB),
        labels={"k": "v"},
        gpus=gpus,
        remapped=remapped,
    )  # fmt: skip


def test_every_wall_is_up() -> None:
    arguments = container().arguments()
    assert arguments["network_mode"] == "none"
    assert arguments["read_only"] is True
    assert arguments["cap_drop"] == ["ALL"]
    assert arguments["security_opt"] == ["no-new-privileges"]
    assert arguments["user"] == "1000:100"
    assert (arguments["mem_limit"], arguments["memswap_limit"], arguments["pids_limit"]) == (
        2 * GB,
        2 * GB,
        7,
    )
    assert (arguments["shm_size"], arguments["init"], arguments["ipc_mode"]) == (GB, True, "private")
    (options,) = arguments["tmpfs"].values()
    assert {"exec", "nosuid", "nodev", f"size={GB}"} <= set(options.split(","))
    assert arguments["userns_mode"] is None
    assert container(remapped=True).arguments()["userns_mode"] == "host"


def test_the_line_that_is_shown_says_the_same() -> None:
    words = shlex.split(container(gpus=("0", "2"), remapped=True).command_line())
    shown = " ".join(words)
    for part in (
        "--network none", "--read-only", "--cap-drop ALL", "--security-opt no-new-privileges",
        "--user 1000:100", f"--memory {2 * GB}", "--pids-limit 7", "--gpus device=0,2", "--userns host",
        "--mount type=bind,source=/in,target=/in,readonly", "--mount type=bind,source=/o,target=/o --mount",
        "--entrypoint timeout sha256:1 9 python spec.json",
    ):  # fmt: skip
        assert part in shown
    assert "A=b c" in words
    assert "--gpus all" in container(gpus=("all",)).command_line()
    assert "--gpus" not in container().command_line()


@pytest.mark.parametrize(
    ("facts", "caller", "user"),
    [
        (PLAIN, (1000, 100), User(ids=(1000, 100))),
        (PLAIN, (0, 0), User(ids=(STEP_USER, STEP_USER), gives=True)),
        (Facts(memory=1, rootless=True), (1000, 100), User(ids=(0, 0))),
        (Facts(memory=1, rootless=True), (0, 0), User(ids=(0, 0))),
    ],
)
def test_a_step_is_the_caller_and_never_root(facts: Facts, caller: tuple[int, int], user: User) -> None:
    assert User.of(facts, *caller) == user


def test_memory_is_left_to_the_machine() -> None:
    assert Limits.of(PLAIN).memory == 7 * GB
    assert Limits.of(Facts(memory=GB)).memory == GB // 2


def test_binds_are_the_same_inside_and_none_twice() -> None:
    folders = [Path("/s/steps/model/1"), Path("/s/steps"), Path("/s/steps"), Path("/s/out/below"), Path("/a")]
    assert binds(folders, [Path("/s/out"), Path("/s/out")]) == (
        Bind(source=Path("/s/out"), path=Path("/s/out"), writable=True),
        Bind(source=Path("/a"), path=Path("/a")),
        Bind(source=Path("/s/steps"), path=Path("/s/steps")),
    )


def test_an_output_folder_may_lie_in_an_input() -> None:
    assert binds([Path("/s")], [Path("/s/out")]) == (
        Bind(source=Path("/s/out"), path=Path("/s/out"), writable=True),
        Bind(source=Path("/s"), path=Path("/s")),
    )


def test_what_a_link_means_is_there_unless_it_is_already() -> None:
    links = [(Path("/hub/blobs/a"), Path("/disk/a")), (Path("/in/b"), Path("/in/b"))]
    assert binds([Path("/in")], [], links)[1:] == (Bind(source=Path("/disk/a"), path=Path("/hub/blobs/a")),)


paths = st.lists(st.sampled_from("abc"), max_size=3).map(lambda parts: Path("/", *parts))


@given(st.lists(paths), st.lists(paths))
def test_whatever_is_asked_for_is_there_and_only_outputs_are_writable(
    reads: list[Path], writes: list[Path]
) -> None:
    found = binds(reads, writes)
    assert {bind.path for bind in found if bind.writable} == set(writes)
    assert len({bind.path for bind in found}) == len(found)
    for path in (*reads, *writes):
        assert any(path.is_relative_to(bind.path) for bind in found)


@pytest.mark.parametrize(("status", "code"), [(0, 0), (3, 3), (124, 124), (137, -9), (139, -11), (255, 255)])
def test_exit_codes_are_those_of_subprocess(status: int, code: int) -> None:
    assert code_of(status) == code


def test_a_container_ends_by_itself_after_its_engine_would_end_it() -> None:
    assert limited(["python"], 10.0) == ["timeout", "--kill-after=10", "40", "python"]
    assert int(deadline(1000.0, 10.0)) > 1000 + 10 + 40


@pytest.mark.parametrize(
    ("visible", "chosen"), [(None, ("all",)), ("", ()), ("0, 2", ("0", "2")), ("GPU-ab", ("GPU-ab",))]
)
def test_gpus_are_those_that_the_caller_sees(visible: str | None, chosen: tuple[str, ...]) -> None:
    assert gpus(visible) == chosen


@pytest.mark.parametrize(
    ("mode", "owner", "folder", "may"),
    [
        (0o644, (0, 0), False, True),
        (0o640, (0, 0), False, False),
        (0o640, (0, 5), False, True),
        (0o604, (0, 5), False, False),  # the group's bits stand for its members
        (0o400, (5, 0), False, True),
        (0o755, (0, 0), True, True),
        (0o754, (0, 0), True, False),  # listed, not entered
        (0o700, (0, 0), True, False),
    ],
)
def test_who_may_read(mode: int, owner: tuple[int, int], folder: bool, may: bool) -> None:
    assert may_read(mode, owner, (5, 5), folder=folder) is may
    assert may_read(0, owner, (0, 0), folder=folder)
