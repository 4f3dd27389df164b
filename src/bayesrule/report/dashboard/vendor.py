"""Fetch the JavaScript that the dashboard ships: `python -m bayesrule.report.dashboard.vendor`.

Exact versions from the npm registry, each tarball checked against the integrity that the registry
states, the minified file and its licence copied to `static/vendor/`, and `manifest.json` written
with the SHA-256 of every file. Nothing of this runs when the dashboard is used, and no build step
or Node is needed.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import sys
import tarfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["FOLDER", "MANIFEST", "PACKAGES", "Package", "fetch"]

FOLDER = Path(__file__).parent / "static" / "vendor"
MANIFEST = FOLDER / "manifest.json"
_REGISTRY = "https://registry.npmjs.org"


@dataclass(frozen=True)
class Package:
    """One package of npm: its exact version and the file that is taken from it."""

    name: str
    version: str
    file: str
    licence: str


PACKAGES = (
    Package("vega", "6.4.0", "build/vega.min.js", "BSD-3-Clause"),
    Package("vega-lite", "6.5.0", "build/vega-lite.min.js", "BSD-3-Clause"),
    Package("vega-embed", "7.3.0", "build/vega-embed.min.js", "BSD-3-Clause"),
    Package("htmx.org", "4.0.1", "dist/htmx.min.js", "0BSD"),
)


def _download(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=60) as answer:
        content: bytes = answer.read()
    return content


def fetch(package: Package) -> list[dict[str, Any]]:
    """Download one package and write its file and licence; return their rows of the manifest.

    Raises:
        ValueError: If the tarball is not what the registry says.
    """
    facts = json.loads(_download(f"{_REGISTRY}/{package.name}/{package.version}"))["dist"]
    content = _download(facts["tarball"])
    kind, _, expected = facts["integrity"].partition("-")
    if base64.b64encode(hashlib.new(kind, content).digest()).decode() != expected:
        raise ValueError(f"{facts['tarball']} is not what the registry's integrity says")
    rows = []
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        names = {
            package.file: Path(package.file).name,
            "LICENSE": f"{package.name}.LICENSE.txt",
        }
        for inside, name in names.items():
            member = archive.extractfile(f"package/{inside}")
            assert member is not None
            data = member.read()
            (FOLDER / name).write_bytes(data)
            rows.append(
                {
                    "file": name,
                    "sha256": hashlib.sha256(data).hexdigest(),
                    "package": package.name,
                    "version": package.version,
                    "licence": package.licence,
                    "source": facts["tarball"],
                }
            )
    return rows


def main() -> int:
    """Fetch all packages and write the manifest."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    rows = [row for package in PACKAGES for row in fetch(package)]
    MANIFEST.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        print(f"{row['sha256']}  {row['file']}  ({row['package']} {row['version']})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
