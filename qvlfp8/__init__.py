"""Which FP8 checkpoint of a vision-language model loads, speaks, sees and stays right in which vLLM."""

__version__ = "0.1.0"
