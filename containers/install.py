"""Installs a lock inside the image's build; standard library only.

What to run is in /build/plan.json (see qvlfp8/images/context.py). Index addresses, credentials and
certificates come from the secrets that the Dockerfile mounts, and go no further than uv's environment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

BUILD = Path("/build")
SECRETS = Path("/run/secrets")

_ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "HOME": "/tmp",  # noqa: S108 - a tmpfs of this build step alone
    "PYTHONHASHSEED": "0",
    # What is built from source imports what is installed; bytecode written then would hold times.
    "PYTHONDONTWRITEBYTECODE": "1",
}


def main() -> int:
    """Carry out the plan; the exit code is uv's."""
    plan = json.loads((BUILD / "plan.json").read_text(encoding="utf-8"))
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if here != plan["python"]:
        print(f"wrong base: it has Python {here}, and the lock is for Python {plan['python']}", flush=True)
        return 1
    created = uv(["venv", "--quiet", "--python", sys.executable, plan["environment"]], {})
    if created != 0:
        return created
    for step in plan["steps"]:
        code = uv(step["command"], step["variables"])
        if code != 0:
            return code
    python = str(Path(plan["environment"]) / "bin" / "python")
    # Out of reach of any hub.
    environment = {**_ENVIRONMENT, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    for arguments in plan["bytecode"]:
        command = [python, "-P", str(BUILD / "bytecode.py"), *arguments]
        code = subprocess.run(command, env=environment, check=False).returncode
        if code != 0:
            return code
    return 0


def uv(arguments: list[str], extra: dict[str, str]) -> int:
    """Run the mounted uv; it says on standard error what it does and why it cannot."""
    settings = SECRETS / "settings"
    environment = {
        **_ENVIRONMENT,
        "UV_CACHE_DIR": "/cache",
        "UV_LINK_MODE": "copy",
        "UV_NO_PROGRESS": "1",
        "UV_NO_CONFIG": "1",
        "UV_PYTHON_DOWNLOADS": "never",
        **(json.loads(settings.read_text(encoding="utf-8")) if settings.exists() else {}),
        **({"SSL_CERT_FILE": str(SECRETS / "ca")} if (SECRETS / "ca").exists() else {}),
        **extra,
    }
    return subprocess.run([str(BUILD / "uv"), *arguments], env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
