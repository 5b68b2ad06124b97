"""The reference model: a tiny Qwen2.5-VL of our own making, and what is needed to judge it."""

from qvlfp8.reference.untrained import write_random

__all__ = ["write_random"]
