"""Hold a manifest against its CRD: ``python deploy/check.py MANIFEST.yaml CRD.yaml``.

The CRD is published with each release of its operator (KubeRay: ``ray.io_rayjobs.yaml``). As the API server
does in strict mode, a field that the schema does not know is an error.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator


def problems(manifest: dict[str, Any], crd: dict[str, Any]) -> Iterator[str]:
    """What of a manifest the schema does not allow, one sentence each; nothing if it is right."""
    group, _, version = manifest["apiVersion"].partition("/")
    spec = crd["spec"]
    if (group, manifest["kind"]) != (spec["group"], spec["names"]["kind"]):
        yield f"it is a {group} {manifest['kind']}, and the CRD of a {spec['group']} {spec['names']['kind']}"
        return
    found = next((v for v in spec["versions"] if v["name"] == version and v["served"]), None)
    if found is None:
        yield f"apiVersion: the CRD serves no {version}"
        return
    for error in Draft202012Validator(_strict(found["schema"]["openAPIV3Schema"])).iter_errors(manifest):
        yield f"{error.json_path}: {error.message[:300]}"


def _strict(schema: Any) -> Any:
    """As JSON Schema: unknown fields are errors, and a number may be text where the CRD says so."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    made = {key: _strict(value) for key, value in schema.items() if not key.startswith("x-kubernetes-")}
    if schema.get("type") == "object" and "properties" in schema:
        open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
        if not open_ended:
            made["additionalProperties"] = False
    return made


def main(manifest: str, crd: str) -> int:
    """Print the problems; 1 if there are any."""
    documents = [yaml.safe_load(Path(path).read_text(encoding="utf-8")) for path in (manifest, crd)]
    found = list(problems(*documents))
    print("\n".join(found) or f"{manifest}: as the schema has it")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
