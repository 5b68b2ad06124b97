"""Start a worker by path where qvlfp8 is not installed: ``python -P .../worker/__main__.py SPEC``.

The package is made importable by itself, without putting its parent folder (and whatever else is
installed there) on ``sys.path``: a worker must see its own environment's packages only.
"""

import importlib.util
import os
import sys
from pathlib import Path


def _mount_package() -> None:
    root = Path(__file__).resolve().parent.parent
    spec = importlib.util.spec_from_file_location(
        "qvlfp8", root / "__init__.py", submodule_search_locations=[str(root)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"no package in {root}")
    module = importlib.util.module_from_spec(spec)
    sys.modules["qvlfp8"] = module
    spec.loader.exec_module(module)


if __name__ == "__main__":
    _mount_package()
    from qvlfp8.worker.protocol import main

    code = main(sys.argv[1:])
    # As forked jobs end: results are written, and taking torch's modules apart takes a second or more.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
