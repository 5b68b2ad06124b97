"""The oracle put to the test: faults planted in good checkpoints, one at a time, and who catches them."""

TRUTH_PER_TASK = 12
"""Questions of each task that every checkpoint is asked, unless told otherwise."""
