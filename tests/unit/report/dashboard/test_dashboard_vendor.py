"""The JavaScript that the package ships is what its manifest says, with its licences."""

import hashlib
import json

from bayesrule.report.dashboard.vendor import FOLDER, MANIFEST, PACKAGES


def test_files_are_those_of_the_manifest():
    rows = json.loads(MANIFEST.read_text())
    there = {path.name for path in FOLDER.iterdir()} - {MANIFEST.name}
    assert there == {row["file"] for row in rows}
    for row in rows:
        assert hashlib.sha256((FOLDER / row["file"]).read_bytes()).hexdigest() == row["sha256"]
        assert row["source"].startswith("https://registry.npmjs.org/")


def test_every_package_is_there_in_its_version_with_its_licence():
    rows = json.loads(MANIFEST.read_text())
    assert {(row["package"], row["version"]) for row in rows} == {
        (package.name, package.version) for package in PACKAGES
    }
    for package in PACKAGES:
        names = [row["file"] for row in rows if row["package"] == package.name]
        assert f"{package.name}.LICENSE.txt" in names
        assert len(names) == 2
