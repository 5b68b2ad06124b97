"""What each command does: read, plan, run, print. The command line itself is :mod:`qvlfp8.cli`.

One module a command, imported when it is called: ``plan`` must not wait for what ``quantize`` needs.
"""
