"""What a host without network needs to run GPU jobs: archives, in pieces, with checksums and a start script.

:mod:`qvlfp8.worker.run_bundle` describes the folder and runs it. What several environments of a bundle hold
goes into one archive, ``common-…``, once; each environment's own rest into one of its name; what is to be run
into ``work``.
"""
