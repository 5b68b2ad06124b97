"""How hard hypothesis looks: quick by default, `--hypothesis-profile=thorough` while developing."""

from hypothesis import settings

# A deadline would measure the machine's load, not the code.
settings.register_profile("quick", max_examples=30, deadline=None)
settings.register_profile("thorough", max_examples=2000, deadline=None)
settings.load_profile("quick")
