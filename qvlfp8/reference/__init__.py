"""The reference models: tiny Qwen2.5-VLs of our own making, and what is needed to judge them."""

from qvlfp8.reference.shipped import training_record, write_trained
from qvlfp8.reference.untrained import write_random

__all__ = ["training_record", "write_random", "write_trained"]
