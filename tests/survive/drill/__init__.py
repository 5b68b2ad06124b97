"""Stage modules that stand in for the real ones in a copy of qvlfp8: small, slow on purpose, always the same.

Importing ModelOpt or vLLM takes longer than all that is killed here. Everything else of the copy is the real
thing: the command line, the plan, the runner, the store, the engines and the workers' protocol.
"""
