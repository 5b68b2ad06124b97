"""What runs inside an environment: standard library plus that environment's packages only.

A worker is a module with two functions, both called by :mod:`qvlfp8.worker.protocol`:

``prepare(jobs) -> facts``
    Called once in the parent process: the slow imports. Returns JSON facts about the environment
    (versions, patches applied); they become part of every job's result.
``run(params, out) -> measured``
    Called once a job, in a process of its own forked after ``prepare``. Writes files below ``out``
    and returns what it measured. Raises :class:`~qvlfp8.worker.protocol.Refused` for what cannot be done.
"""
