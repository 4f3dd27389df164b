"""The table of faults in CONTRIBUTING.md names what the tests try, no more and no less."""

import re

from command_line import ROOT


def test_its_rows_are_the_named_faults():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = text.partition("## Faults")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \| ", section, re.MULTILINE)
    assert rows.pop(0) == "fault"
    named = set()
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        named |= set(re.findall(r'\.fault\(\s*"([^"]+)"', path.read_text()))
    assert len(set(rows)) == len(rows)
    assert {row.replace("\\|", "|") for row in rows} == named
