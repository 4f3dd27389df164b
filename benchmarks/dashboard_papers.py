"""How fast the scoreboard answers with hundreds of papers, and what memory it takes.

Copies the checkout's papers and their verdicts under new keys, then asks the application for pages.

    python benchmarks/dashboard_papers.py [--papers 300]
"""

import argparse
import resource
import shutil
import tempfile
import time
from pathlib import Path

from starlette.testclient import TestClient

from bayesrule.report.dashboard.app import create_app
from bayesrule.report.dashboard.site import Site

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    ("scoreboard, first", "/"),
    ("scoreboard, again", "/"),
    ("papers, filtered", "/?task=classification&verdict=contradicted"),
    ("claims", "/?view=claims"),
    ("claims, last page", "/?view=claims&page=9999"),
    ("claims, words", "/?view=claims&q=accurate+adamw"),
    ("claims as CSV", "/scoreboard.csv?view=claims"),
)


def copies(to, n):
    """Write n papers with the verdicts of the checkout's own, in turn."""
    keys = sorted(path.parent.name for path in ROOT.glob("experiments/*/paper.yaml"))
    for number in range(n):
        key = keys[number % len(keys)]
        home = to / "experiments" / f"{key}-{number}"
        home.mkdir(parents=True)
        text = (ROOT / "experiments" / key / "paper.yaml").read_text()
        (home / "paper.yaml").write_text(text)
        for folder in (ROOT / "results" / key).iterdir():
            there = to / "results" / home.name / folder.name
            there.mkdir(parents=True)
            for name in ("claims.json", "provenance.json"):
                shutil.copyfile(folder / name, there / name)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--papers", type=int, default=300)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        (root / "runs").mkdir()
        copies(root, args.papers)
        site = Site(root / "runs", root / "results", root / "experiments", root / "cache")
        client = TestClient(create_app(site), base_url="http://127.0.0.1")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(f"{args.papers} papers")
        for name, url in PAGES:
            start = time.perf_counter()
            answer = client.get(url)
            seconds = time.perf_counter() - start
            assert answer.status_code == 200, answer.text
            print(f"  {name:20} {1000 * seconds:8.0f} ms {len(answer.content) / 1000:8.0f} kB")
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(f"  memory {before / 1000:.0f} MB before the first page, {after / 1000:.0f} MB after")


if __name__ == "__main__":
    main()
