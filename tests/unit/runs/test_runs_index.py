"""The index of a store: keeps up with it, survives what it finds there and its own loss."""

import pytest

from bayesrule.errors import ConfigError
from bayesrule.runs import RunStore
from bayesrule.runs.index import RunIndex
from bayesrule.runs.query import Query


def write(store, seed, metrics=None, status="done", **config):
    cfg = {"posterior": {"_target_": "bayesrule.optim.IVON", "lr": 0.1}, "seed": seed, **config}
    with store.folder(cfg).lock() as folder:
        folder.write_record(status, metrics or {}, provenance={"date": f"2026-01-{seed:02d}"})
    return folder


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path / "runs")


@pytest.fixture
def index(tmp_path, store):
    return RunIndex(store.root, tmp_path / "cache")


def found(index, text="", **options):
    index.refresh()
    return [run.id for run in index.find(Query.parse(text, **options))[0]]


def test_only_what_changed_is_read_again(store, index):
    folders = [write(store, seed, {"test/nll@mean": seed / 10}) for seed in (1, 2, 3)]
    assert index.refresh() == 3
    assert index.refresh() == 0
    write(store, 2, {"test/nll@mean": 9.0})
    assert index.refresh() == 1
    assert found(index, sort="test/nll@mean") == [folders[1].id, folders[2].id, folders[0].id]
    store.rm(folders[0].id)
    assert index.refresh() == 0
    assert index.count() == 2
    assert index.find(Query(), ["test/nll@mean"])[1] == 2


def test_filters_agree_with_the_store_itself(store, index):
    for seed in (1, 2, 11):
        write(store, seed, {"test/acc@mean": seed / 20}, status="failed" if seed == 2 else "done")
    for text in ("seed=1*", "status=failed", "posterior.lr=0.1", "seed=[12]", "seed=[!1]"):
        assert sorted(found(index, text)) == sorted(run.id for run in store.ls([text]))


def test_missing_values_come_last_in_both_orders(store, index):
    without = write(store, 1)
    ids = [write(store, seed, {"m": float(seed)}).id for seed in (2, 3)]
    assert found(index, sort="m", descending=True) == [*reversed(ids), without.id]
    assert found(index, sort="m", descending=False) == [*ids, without.id]


def test_status_follows_who_works_on_a_run(store, index):
    folder = write(store, 1, status="stopped")
    assert found(index, "status=stopped") == [folder.id]
    with folder.lock():
        assert found(index, "status=running") == [folder.id]
    assert found(index, "status=stopped") == [folder.id]


def test_a_run_without_a_record_is_found_by_its_configuration(store, index):
    with store.folder({"posterior": {"name": "x"}, "seed": 5}).lock() as folder:
        pass
    assert found(index, "status=unfinished posterior=X seed=5") == [folder.id]


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", "null", "\x00\xff", '{"schema": 1, "id": "x"}', "[" * 100_000,
        '{"a": "\\ud800"}', '{"schema": 99}', "1e999999", '{"id": {"$ne": 1}}',
    ],
)  # fmt: skip
def test_damaged_records_are_listed_with_the_reason(store, index, content):
    folder = write(store, 1)
    folder.record_path.write_text(content, encoding="latin-1")
    index.refresh()
    (run,) = index.find(Query())[0]
    assert run.status == "corrupt"
    assert run.error


@pytest.mark.parametrize("kind", ["[{0}]", "{{p: [{0}]}}"])
def test_a_short_file_that_means_a_huge_tree_is_read_in_part(store, index, kind):
    folder = store.folder({"seed": 5})
    folder.path.mkdir(parents=True)
    lines = ["a0: &a0 [x]"]
    for n in range(1, 60):
        lines.append(f"a{n}: &a{n} " + kind.format(",".join([f"*a{n - 1}"] * 9)))
    folder.config_path.write_text("\n".join(lines))
    assert found(index, "status=unfinished") == [folder.id]


def test_a_short_file_of_nested_mappings_is_read_in_part(store, index):
    folder = store.folder({"seed": 5})
    folder.path.mkdir(parents=True)
    lines = ["a0: &a0 {x: 1}"]
    lines += [
        f"a{n}: &a{n} {{" + ", ".join(f"k{m}: *a{n - 1}" for m in range(9)) + "}"
        for n in range(1, 60)
    ]
    folder.config_path.write_text("\n".join(lines))
    assert found(index, "status=unfinished") == [folder.id]


def test_strange_names_and_values_are_only_values(store, index):
    name = "'; DROP TABLE run; --"
    odd = {name: {"a.b": 2**70, "%": float(2**60), "": None}, "list": [1, [2, {"x": "y"}]]}
    folder = write(store, 1, {name: 1.0, "nan": float("nan"), "inf": float("inf")}, odd=odd)
    assert found(index, f'"odd.{name}.a.b=1180591620717411303424"') == [folder.id]
    assert found(index, sort=name) == [folder.id]
    assert found(index, f'"{name}<2"') == [folder.id]
    with pytest.raises(ConfigError, match="no run has the key"):
        found(index, sort="run.id DESC; DROP TABLE run")
    assert index.count() == 1


def test_a_lost_or_damaged_index_is_made_again(store, index):
    folder = write(store, 1)
    assert found(index) == [folder.id]
    index.path.write_bytes(b"no database" * 1000)
    for ending in ("-wal", "-shm"):
        index.path.with_name(index.path.name + ending).unlink(missing_ok=True)
    assert found(index) == [folder.id]
    index.path.unlink()
    assert index.count() == 1


def test_an_unwritable_cache_is_replaced_for_the_process(store, tmp_path):
    folder = write(store, 1)
    (tmp_path / "file").write_text("")
    index = RunIndex(store.root, tmp_path / "file" / "cache")  # below a file: no folder can be made
    assert found(index) == [folder.id]


def test_two_stores_have_two_indexes(tmp_path, store):
    other = RunStore(tmp_path / "other")
    write(store, 1)
    one, two = (RunIndex(each.root, tmp_path / "cache") for each in (store, other))
    assert (len(found(one)), len(found(two))) == (1, 0)
    assert one.path != two.path
