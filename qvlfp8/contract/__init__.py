"""What each vLLM expects of a checkpoint, recorded from its own loader, and the static answer over it.

``probes`` are shown to a version's loader (:mod:`qvlfp8.worker.contract`), ``condense`` makes its contract of
the answers, ``predict`` replays a checkpoint's headers over it, ``verdict`` says what that is worth.
"""
