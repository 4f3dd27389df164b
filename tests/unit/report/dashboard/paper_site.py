"""A small world of papers, one of them hostile, with results made by the program itself."""

from bayesrule.runs import ArmRun, load_paper, write_results

EVIL = "<script>window.evil = 1</script>\"'><img src=x onerror=evil()> {{ 7 * 7 }} ${evil}"

PAPER = """\
paper:
  title: {title}
  authors: Somebody et al.
  year: 2024
  venue: A Conference
  arxiv: "2401.00001"
  task: {task}
  posteriors: [diagonal Gaussian]
studies:
  main:
    title: A study
    experiment: {key}/main
    arms:
      ours: [posterior=ivon]
      base: [posterior=adamw]
    scales:
      smoke: {{seeds: "10"}}
      cpu: {{seeds: "10-12"}}
    metrics: [test/nll@mean, test/acc@mean]
    reported: {{source: Table 1, values: {{ours: {{test/nll@mean: 0.4}}}}}}
claims:
  - id: C1
    statement: {statement}
    study: main
    kind: ordering
    metric: test/nll@mean
    arms: [ours, base]
    direction: lower
    paper: {{source: Table 1, ours: 0.4, base: 0.9}}
  - id: C2
    statement: The other way round, which is wrong.
    study: main
    kind: ordering
    metric: test/nll@mean
    arms: [base, ours]
    direction: lower
  - id: C3
    statement: Accuracy is high.
    study: main
    kind: value
    metric: test/acc@mean
    arm: ours
    band: [0.8, null]
"""

README = """\
# A paper

See [the table](../../results/{key}/cpu/table.md), [a file](paper.yaml), [arXiv](https://arxiv.org/).

<script>window.evil = 1</script> [click](javascript:evil()) ![picture](https://example.org/x.png)

| a | b |
|---|---|
| 1 | 2 |

    <img src=x onerror=evil()>
"""


def _quoted(text):
    return "'" + text.replace("'", "''") + "'"


def runs(worse=0.5):
    for seed in (10, 11, 12):
        for arm, nll in (("ours", 0.5), ("base", 0.5 + worse)):
            metrics = {"test/nll@mean": nll + 0.01 * (seed - 11), "test/acc@mean": 0.9}
            yield ArmRun("main", arm, seed, f"{seed:016x}", "done", metrics)


def make_paper(root, key, *, statement="Ours has lower NLL.", title="A paper", task="testing"):
    """Write one paper with smoke and cpu results and a figure; return its results folder."""
    home = root / "experiments" / key
    home.mkdir(parents=True)
    text = PAPER.format(key=key, title=_quoted(title), task=task, statement=_quoted(statement))
    (home / "paper.yaml").write_text(text)
    (home / "README.md").write_text(README.format(key=key))
    paper = load_paper(home)
    for scale in ("smoke", "cpu"):
        made = [run for run in runs() if scale == "cpu" or run.seed == 10]
        folder = root / "results" / key / scale
        write_results(folder, paper, scale, made)
        figures = folder / "figures"
        figures.mkdir()
        (figures / "main-curve.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
        (figures / "main-curve.png").write_bytes(b"\x89PNG\r\n")
        (figures / "main-curve.csv").write_text("a,b\n1,2\n")
    return root / "results" / key / "cpu"
