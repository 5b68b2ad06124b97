"""The oracle put to the test: faults planted in good checkpoints, one at a time, and who catches them."""
