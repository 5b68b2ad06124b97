"""The real sizes, on a GPU: random weights at the dimensions of Qwen2.5-VL 3B and 7B, through every stage.

    python -m bench.real_sizes run --home /tmp/real --out OUT --gpus 1
    python -m bench.real_sizes report results/real-sizes

``sizes`` are the dimensions, ``jobs`` what is to be done and in which order, ``running`` does it: one process
a job, with the environments of a bundle (CONTRIBUTING, "Real sizes"). What a process does is in ``making``
(a model on the GPU), the project's own workers ``quantize`` and ``inspect``, ``bench/plain_export.py`` beside
them, and ``serving`` (vLLM). ``records`` are what is committed; ``report`` makes a page of them.
"""
