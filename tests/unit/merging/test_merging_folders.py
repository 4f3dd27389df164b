"""Model folders merged on disk: streams, shards, types, tied weights, refusals, cards."""

import hashlib
import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from folder_cases import tensors, write_folder
from safetensors.torch import load_file

from bayesrule.cli.main import main
from bayesrule.errors import ConfigError, CorruptFile
from bayesrule.merging import MergeOptions, ModelFolder, engine, merge, save_curvature
from bayesrule.merging.merge_folders import MergePlan
from bayesrule.merging.methods import METHODS
from bayesrule.merging.tensor_files import TensorFile, TensorSpec, write_tensors


def load(folder):
    return {
        k: v for f in sorted(folder.glob("model*.safetensors")) for k, v in load_file(f).items()
    }


def floats(model):
    return {name: t for name, t in model.items() if t.is_floating_point()}


@pytest.fixture
def models(tmp_path):
    return [write_folder(tmp_path / name, tensors(k)) for k, name in enumerate("OAB")]


def curvature(folder, seed, kind="ggn"):
    g = torch.Generator().manual_seed(seed)
    held = {k: torch.rand(t.shape, generator=g) for k, t in floats(load(folder)).items()}
    del held["norm.running_var"], held["head.weight"]
    about = dict(kind=kind, n_used=10, n_data=20, data={"name": "tiny"})
    save_curvature(held, folder, **about)
    return held


@pytest.mark.parametrize("method", [m for m in METHODS if METHODS[m].curvature == "none"])
def test_folders_equal_dictionaries(method, models, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(engine, "PIECE", 7)
    base, *pair = models
    words = ["--base", str(base)] if METHODS[method].base else []
    out = tmp_path / "out"
    assert main(["merge", "--method", method, "--out", str(out), *words, *map(str, pair)]) == 0
    given = {"base": floats(load(base))} if METHODS[method].base else {}
    expected = merge(method, [floats(load(m)) for m in pair], options=MergeOptions(), **given)[0]
    found = load(out)
    expected["head.weight"] = expected["embed.weight"]  # one tensor in every model, one here
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-6)
        assert found[name].dtype == torch.float32
    assert torch.equal(found["positions"], torch.arange(5))
    assert {p.name for p in out.iterdir()} == {
        "model.safetensors", "config.json", "tokenizer.json", "vocab.txt", "MERGE.md", "merge.json",
    }  # fmt: skip
    about = json.loads((out / "merge.json").read_text())
    digest = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    assert about["files"] == {"model.safetensors": digest}
    assert method in (out / "MERGE.md").read_text()
    assert [m["folder"] for m in about["models"]] == [str(m) for m in pair]


@pytest.mark.parametrize("method", ["fisher", "fisher_base", "gradient_matching"])
def test_curvature_is_found_in_the_folders(method, models, tmp_path):
    base, *pair = models
    H0, *H = [curvature(folder, 10 + k) for k, folder in enumerate(models)]
    out = tmp_path / "out"
    words = ["--base", str(base), "--alpha", "0.5,0.8", "--method", method, "--out", str(out)]
    assert main(["merge", *words, *map(str, pair)]) == 0
    names = list(H0)
    cut = [{n: load(m)[n] for n in names} for m in models]
    options = MergeOptions(alphas=[0.5, 0.8])
    expected, _, report = merge(
        method, cut[1:], base=cut[0], curvatures=H, base_curvature=H0, options=options
    )
    found = load(out)
    for name in names:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=1e-6)
    about = json.loads((out / "merge.json").read_text())
    assert about["curvatures"][0]["n_data"] == 20
    assert about["report"].keys() == report.keys()
    assert "1 tensors without curvature" in about["notes"][0] or "without" in about["notes"][0]


def test_regmean_takes_gram_files(models, tmp_path):
    pair = models[1:]
    for k, folder in enumerate(pair):
        G = torch.randn(4, 4, generator=torch.Generator().manual_seed(k)).double()
        about = dict(kind="gram", n_used=5, n_data=5, data={})
        save_curvature({"layer.weight": G @ G.mT}, folder, **about)
    out = tmp_path / "out"
    assert main(["merge", "--method", "regmean", "--out", str(out), *map(str, pair)]) == 0
    grams = [load_file(f / "gram.safetensors") for f in pair]
    cut = [{"layer.weight": load(m)["layer.weight"]} for m in pair]
    expected = merge("regmean", cut, curvatures=grams)[0]["layer.weight"]
    torch.testing.assert_close(load(out)["layer.weight"], expected)
    wrong = ["merge", "--method", "fisher", "--out", str(tmp_path / "no"), *map(str, pair)]
    wrong += [f"--curvature={f / 'gram.safetensors'}" for f in pair]
    assert main(wrong) == 2


def test_shards_and_types_are_the_first_models(tmp_path):
    whole = {k: t.to(torch.bfloat16) if k != "positions" else t for k, t in tensors(1).items()}
    A = write_folder(tmp_path / "A", whole, shards=3)
    B = write_folder(tmp_path / "B", tensors(2))
    out = tmp_path / "out"
    assert main(["merge", "--method", "average", "--out", str(out), str(A), str(B)]) == 0
    assert sorted(p.name for p in out.glob("model-*")) == sorted(p.name for p in A.glob("model-*"))
    found, a, b = load(out), load(A), load(B)
    for name in floats(a):
        assert found[name].dtype == torch.bfloat16
        mean = ((a[name].double() + b[name].double()) / 2).to(torch.bfloat16)
        assert torch.equal(found[name], mean)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index == json.loads((A / "model.safetensors.index.json").read_text())
    other = tmp_path / "half"
    words = ["--method", "average", "--dtype", "float16", "--out", str(other)]
    assert main(["merge", *words, str(B), str(A)]) == 0
    assert {t.dtype for t in floats(load(other)).values()} == {torch.float16}


def test_tied_weights_stay_tied_under_random_masks(models, tmp_path):
    out = tmp_path / "out"
    words = ["--method", "dare", "--base", str(models[0]), "--out", str(out)]
    assert main(["merge", *words, *map(str, models[1:])]) == 0
    assert torch.equal(load(out)["head.weight"], load(out)["embed.weight"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.pop("layer.bias"), "layer.bias is in the first only"),
        (lambda m: m.update(extra=torch.zeros(1)), "extra is in the second only"),
        (lambda m: m.update({"layer.bias": torch.zeros(5)}), r"layer.bias has shape \[4\] and"),
        (lambda m: m.update({"layer.bias": torch.arange(4)}), "layer.bias is of type F32 and I64"),
    ],
)  # fmt: skip
def test_other_architectures_are_refused(change, words, models, tmp_path):
    model = tensors(7)
    change(model)
    other = write_folder(tmp_path / "C", model)
    with pytest.raises(ConfigError, match=words):
        MergePlan.of(METHODS["average"], tmp_path / "out", [models[1], other])
    assert not (tmp_path / "out").exists()


def test_quantised_weights_are_refused(tmp_path):
    pair = []
    for k in range(2):
        model = tensors(k) | {"q": torch.full((3,), k, dtype=torch.int8)}
        pair.append(write_folder(tmp_path / str(k), model))
    out = tmp_path / "out"
    assert main(["merge", "--method", "average", "--out", str(out), *map(str, pair)]) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0", "1"]  # nothing was left


def test_wrong_use_is_refused_before_torch(models, tmp_path):
    """Exit code 2, one sentence, and torch never imported."""
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").write_text("x")
    cases = [
        ["--method", "tise", "--out", "o", str(models[0])],
        ["--method", "average", "--out", str(full), *map(str, models)],
        ["--method", "average", "--out", "o", str(tmp_path / "none"), str(models[0])],
        ["--method", "task_arithmetic", "--out", "o", *map(str, models)],
        ["--method", "gradient_matching", "--base", str(models[0]), "--out", "o", str(models[1])],
        ["--method", "average", "--out", "o", "--dtype", "int8", *map(str, models)],
        ["--method", "average", "--out", "o", "--rank", "3", *map(str, models)],
    ]
    code = (
        "import sys; from bayesrule.cli.main import main\n"
        f"for words in {cases!r}:\n"
        "    assert main(['merge', *words]) == 2, words\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "did you mean 'ties'" in done.stderr
    assert len(done.stderr.splitlines()) == len(cases)
    assert not (tmp_path / "o").exists()


def test_damaged_files_are_noticed(models, tmp_path):
    file = models[1] / "model.safetensors"
    whole = file.read_bytes()
    for cut in (whole[:-3], whole[:20], b"", whole[:8] + b"x" + whole[9:]):
        file.write_bytes(cut)
        with pytest.raises(CorruptFile):
            ModelFolder(models[1])
    file.write_bytes(whole)
    curvature(models[1], 0)
    held = models[1] / "curvature.safetensors"
    content = bytearray(held.read_bytes())
    content[-1] ^= 1
    held.write_bytes(content)
    curvature(models[2], 0)
    with pytest.raises(CorruptFile, match="checksum"):
        MergePlan.of(METHODS["fisher"], tmp_path / "out", models[1:])


_SLOW = """
import sys, time
from bayesrule.merging import engine
from bayesrule.cli.main import main
first = engine.merge_pieces
def slow(*args):
    for piece in first(*args):
        print("piece", flush=True)
        time.sleep(5)
        yield piece
engine.merge_pieces = slow
main(["merge", "--method", "average", "--out", sys.argv[1], *sys.argv[2:]])
"""


def test_a_killed_merge_leaves_no_folder(models, tmp_path):
    out = tmp_path / "out"
    words = [sys.executable, "-c", _SLOW, str(out), *map(str, models)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "piece\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists()
    assert len(list(tmp_path.glob(".out.*.merging"))) == 1
    assert main(["merge", "--method", "average", "--out", str(out), *map(str, models)]) == 0
    assert not list(tmp_path.glob(".*"))  # the next one tidied up


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "int64", "bool"])
def test_files_are_those_of_the_safetensors_package(dtype, tmp_path):
    tensor = (torch.randn(3, 4) * 3).to(getattr(torch, dtype))
    held = {"a": tensor, "empty": tensor[:0], "scalar": tensor[0, 0]}
    code = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
    code |= {"int64": "I64", "bool": "BOOL"}
    specs = [TensorSpec(n, code[dtype], tuple(t.shape)) for n, t in held.items()]
    path = tmp_path / "x.safetensors"
    digest = write_tensors(path, specs, lambda name: iter([held[name]]))
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    back, file = load_file(path), TensorFile(path)
    for name, t in held.items():
        assert torch.equal(back[name], t)
        assert torch.equal(file.read(name), t)
    assert torch.equal(file.read("a", 3, 7), tensor.reshape(-1)[3:7])


def test_transformers_loads_the_merged_folder(tmp_path):
    import transformers

    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=20, max_position_embeddings=12, num_labels=3,
    )  # fmt: skip
    made = []
    for k in range(2):
        torch.manual_seed(k)
        made.append(transformers.BertForSequenceClassification(config).eval())
        made[k].save_pretrained(tmp_path / str(k), max_shard_size="6KB")
    out = tmp_path / "out"
    words = ["--method", "weighted", "--weights", "1,3", "--out", str(out)]
    assert main(["merge", *words, str(tmp_path / "0"), str(tmp_path / "1")]) == 0
    assert len(list(out.glob("model-*.safetensors"))) > 2
    loaded, info = transformers.BertForSequenceClassification.from_pretrained(
        out, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    states = [m.state_dict() for m in made]
    for name, tensor in loaded.state_dict().items():
        if tensor.is_floating_point():
            expected = 0.25 * states[0][name] + 0.75 * states[1][name]
            torch.testing.assert_close(tensor, expected, rtol=1e-6, atol=1e-6)
    assert loaded(torch.tensor([[1, 2, 3]])).logits.shape == (1, 3)


def test_memory_is_a_few_pieces(tmp_path):
    """A model of 32 million numbers is merged in less memory than one model takes."""
    resource = pytest.importorskip("resource")
    del resource
    for k in range(2):
        model = {f"w{i}": torch.full((2**21,), float(k)) for i in range(16)}
        write_folder(tmp_path / str(k), model)
    code = (
        "import resource, sys, torch\n"
        "from bayesrule.cli.main import main\n"
        "import bayesrule.merging.engine\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "main(['merge', '--method', 'average', '--out', 'out', '0', '1'])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) * 1024 < 16 * 2**21 * 4 * 0.7


def test_two_fine_tuned_minilms_become_a_model_that_transformers_loads(tmp_path):
    """One step of training each, from the package's weights."""
    import transformers

    from bayesrule.errors import DataUnavailable
    from bayesrule.pretrained import checkpoint_folder

    try:
        source = checkpoint_folder("minilm")
    except DataUnavailable as missing:
        pytest.skip(str(missing))
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    auto = transformers.AutoModelForSequenceClassification
    texts = (["a joy to watch", "dull from start to end"], ["works well", "broke on day one"])
    states = []
    for k, pair in enumerate(texts):
        torch.manual_seed(0)  # one head for both
        model = auto.from_pretrained(source, num_labels=2)
        batch = tokenizer(pair, padding=True, return_tensors="pt")
        model(**batch, labels=torch.tensor([1, 0])).loss.backward()
        torch.optim.SGD(model.parameters(), 0.1).step()
        model.save_pretrained(tmp_path / str(k))
        tokenizer.save_pretrained(tmp_path / str(k))
        states.append(model.state_dict())
    out = tmp_path / "merged"
    words = ["merge", "--method", "slerp", "--out", str(out), str(tmp_path / "0")]
    assert main([*words, str(tmp_path / "1")]) == 0
    merged, info = auto.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    name = "bert.encoder.layer.5.output.dense.weight"
    a, b = (state[name].double() for state in states)
    assert not torch.equal(a, b)
    torch.testing.assert_close(merged.state_dict()[name].double(), (a + b) / 2)  # nearly parallel
    batch = transformers.AutoTokenizer.from_pretrained(out)(
        texts[0], return_tensors="pt", padding=True
    )
    with torch.no_grad():
        assert torch.isfinite(merged.eval()(**batch).logits).all()
