"""How far a model's answers are from those of the BF16 model, token by token, in nats."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qvlfp8.worker.generate import IDS, LOGPROBS, TOKENS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qvlfp8.worker.generate_engine import Reply


Rows = tuple["NDArray[np.float32]", "NDArray[np.int32]"]
"""Log-probabilities and their tokens, a row a position, likeliest first."""


def compare(replies: Sequence[Reply], out: Path, baseline: Path | None) -> dict[str, Any] | None:
    """Write the log-probabilities below ``out``; hold them against those below ``baseline``.

    Answers are compared token by token, up to and with the first that is another: what follows
    that was said to something else.

    Returns None without a baseline, or if it has none: then vLLM did not come so far with it.

    Raises:
        ValueError: the baseline was asked another number of questions.
    """
    given, ids = _rows(replies), [reply.ids for reply in replies]
    (out / LOGPROBS).parent.mkdir(parents=True, exist_ok=True)
    np.save(out / LOGPROBS, given[0])
    np.save(out / TOKENS, given[1])
    (out / IDS).write_text(json.dumps(ids), encoding="utf-8")
    if baseline is None or not (baseline / LOGPROBS).exists():
        return None
    theirs = np.load(baseline / LOGPROBS), np.load(baseline / TOKENS)
    their_ids = json.loads((baseline / IDS).read_text(encoding="utf-8"))
    if len(their_ids) != len(ids):
        raise ValueError(f"{baseline} holds {len(their_ids)} answers, this run {len(ids)}")
    ours_at, theirs_at = _comparable(ids, their_ids)
    found = divergence((theirs[0][theirs_at], theirs[1][theirs_at]), (given[0][ours_at], given[1][ours_at]))
    return found | {"not_finite": int((~_is_finite(given)).sum())}


def _comparable(
    ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]
) -> tuple[list[int], list[int]]:
    """Rows of both sides that were said to the same: as long as the answers are equal, and one more."""
    pairs: list[tuple[int, int]] = []
    our_start = their_start = 0
    for one, other in zip(ours, theirs, strict=True):
        for step in range(min(len(one), len(other))):
            pairs.append((our_start + step, their_start + step))
            if one[step] != other[step]:
                break
        our_start += len(one)
        their_start += len(other)
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def divergence(expected: Rows, given: Rows) -> dict[str, Any]:
    """KL(expected || given) a row, summed up.

    Where a vocabulary was not recorded whole, what is left of both distributions counts as one more
    token, and a token that the given row does not list as likely as its last one. Rows with a value
    that is not finite are counted and otherwise left out; ``None`` stands for "no row is left".
    """
    finite = _is_finite(given) & _is_finite(expected)
    pairs = [
        (dict(zip(tokens.tolist(), row.tolist(), strict=True)) for tokens, row in ((et, er), (gt, gr)))
        for er, et, gr, gt in (
            (expected[0][i], expected[1][i], given[0][i], given[1][i]) for i in np.flatnonzero(finite)
        )
    ]
    kl = np.array([_kl(*pair) for pair in pairs])
    agree = expected[1][finite, 0] == given[1][finite, 0]
    some = bool(finite.any())
    return {
        "positions": len(finite),
        "not_finite": int((~_is_finite(given)).sum()),
        "mean_kl": round(float(kl.mean()), 6) if some else None,
        "p99_kl": round(float(np.percentile(kl, 99)), 6) if some else None,
        "max_kl": round(float(kl.max()), 6) if some else None,
        "top1_agreement": round(float(agree.mean()), 4) if some else None,
    }


def _is_finite(rows: Rows) -> NDArray[np.bool_]:
    logprobs, tokens = rows
    found: NDArray[np.bool_] = (np.isfinite(logprobs) | (tokens < 0)).all(axis=1) & (tokens[:, 0] >= 0)
    return found


def _kl(expected: dict[int, float], given: dict[int, float]) -> float:
    floor = min(given.values())
    p = np.array([value for token, value in expected.items() if token >= 0], dtype=np.float64)
    q = np.array([given.get(token, floor) for token in expected if token >= 0], dtype=np.float64)
    rest_p, rest_q = (max(1.0 - float(np.exp(x).sum()), 0.0) for x in (p, q))
    kl = float((np.exp(p) * (p - q)).sum())
    if rest_p > _ROUNDING:
        kl += rest_p * float(np.log(rest_p / max(rest_q, _ROUNDING)))
    return max(kl, 0.0)


_ROUNDING = 1e-4
"""What float32 log-probabilities of a whole vocabulary can miss of 1."""


def _rows(replies: Sequence[Reply]) -> Rows:
    steps = [step for reply in replies for step in reply.logprobs]
    width = max((len(step) for step in steps), default=0) or 1
    logprobs = np.full((len(steps), width), np.nan, dtype=np.float32)
    tokens = np.full((len(steps), width), -1, dtype=np.int32)
    for row, step in enumerate(steps):
        ordered = sorted(step.items(), key=lambda pair: (-pair[1], pair[0]))
        for column, (token, value) in enumerate(ordered):
            logprobs[row, column], tokens[row, column] = value, token
    return logprobs, tokens
