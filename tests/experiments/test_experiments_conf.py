"""Generated from conf/: every option of every group composes and is what its schema says."""

import functools
import inspect

import pytest
import yaml

from bayesrule.config import compose, conf_dir, locate, root_dir
from bayesrule.config.compose import finish, group_options, people_errors
from bayesrule.config.kinds import KIND_KEY, of_kind
from bayesrule.config.schema import SCHEMA_KEY, parse_rule
from bayesrule.errors import ConfigError

GROUPS = sorted(
    path.name for path in conf_dir().iterdir() if path.is_dir() and path.name != "hydra"
)
PLAIN = [group for group in GROUPS if group not in ("experiment", "scale")]
OPTIONS = [(group, option) for group in GROUPS for option in group_options(group)]
BESIDE = {
    "env": ["task=rl"],
    "scenario": ["task=continual"],
    "correction": ["task=continual"],
    "federated": ["task=federated"],
    "engine": ["task=federated"],
    "merge": ["task=merging"],
}  # groups that only some configurations have
# read by the code that builds the object, not by the object itself
ELSEWHERE = {
    "posterior": {"ess_factor"},
    "task": {"noise_std"},
    "scenario": {"name"},
    "federated": {"prior_prec", "family", "memory_items"},
}


@functools.cache
def hydra_config(group, option):
    """Return the whole configuration with one option chosen, as Hydra merges it.

    A posterior or model of another kind than networks comes with the first task of its kind.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    own = {*of_kind(group, "network")} if group in ("posterior", "model") else {option}
    task = [] if option in own else [f"task={of_kind('task', 'gp')[0]}"]
    GlobalHydra.instance().clear()
    with people_errors(), initialize_config_dir(str(conf_dir()), version_base="1.3"):
        beside = [*BESIDE.get(group, ()), *task]
        return hydra_compose("config", overrides=[*beside, f"{group}={option}"])


@pytest.fixture(scope="module")
def merged():
    """Every option of every group as plain containers, schema blocks included."""
    from omegaconf import OmegaConf

    return {
        (group, option): OmegaConf.to_container(hydra_config(group, option)[group], resolve=True)
        for group, option in OPTIONS
        if group in PLAIN
    }


def nodes(node, prefix):
    """Yield (dotted name, mapping) for a mapping and those inside that have their own schema."""
    yield prefix, node
    for name, value in node.items():
        if isinstance(value, dict) and name != SCHEMA_KEY:
            yield from nodes(value, f"{prefix}.{name}")


def test_the_groups_are_those_of_the_design():
    wanted = {"posterior", "model", "data", "task", "trainer", "metrics", "callbacks", "logger"}
    assert wanted | {"scale", "experiment"} <= set(GROUPS)
    assert len(OPTIONS) > 50


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_alone_and_satisfies_its_own_rules(group, option):
    config = finish(hydra_config(group, option))  # what `compose` does with it
    if group in ("model", "data", "env", "scenario", "logger") and option != "none":
        name = "local" if (group, option) == ("logger", "default") else option
        assert config[group]["name"] == name


def test_every_key_has_a_rule_and_every_rule_a_key(merged):
    used, ruled = {}, {}
    for (group, option), node in merged.items():
        for where, part in nodes(node, group):
            rules = part.get(SCHEMA_KEY, {})
            keys = {
                name
                for name, value in part.items()
                if name not in (SCHEMA_KEY, KIND_KEY, "_target_") and not isinstance(value, dict)
            }
            assert keys <= rules.keys(), f"{group}={option}: {where} lacks rules"
            used.setdefault(where, set()).update(keys)
            ruled.setdefault(where, set()).update(rules)
    for where, names in ruled.items():
        assert names == used[where], f"{where}: rules without an option"


def test_every_rule_parses_and_refuses_something(merged):
    for (group, _), node in merged.items():
        for where, part in nodes(node, group):
            for name, text in part.get(SCHEMA_KEY, {}).items():
                rule = parse_rule(text)
                key = f"{where}.{name}"
                assert rule.coerce(part[name], key) == part[name] if name in part else True
                wrong = {"a": 1} if rule.type in ("str", "list[str]") else "no such value"
                with pytest.raises(ConfigError, match=name):
                    rule.coerce(wrong, key)
                if not rule.nullable:
                    with pytest.raises(ConfigError, match=name):
                        rule.coerce(None, key)


def targets(node, where):
    for name, part in nodes(node, where):
        if "_target_" in part:
            yield name, part


def test_every_target_is_allowed_is_a_class_and_takes_the_options(merged):
    """An option that the class does not take would be left out without a word."""
    seen = set()
    for (group, _), node in merged.items():
        for where, part in targets(node, group):
            target = locate(part["_target_"], f"{where}._target_", root_dir())
            assert inspect.isclass(target)
            options = set(part) - {SCHEMA_KEY, KIND_KEY, "_target_"} - ELSEWHERE.get(group, set())
            unknown = options - inspect.signature(target).parameters.keys()
            assert not unknown, f"{part['_target_']} does not take {sorted(unknown)}"
            seen.add(part["_target_"])
    assert len(seen) >= 9


def test_no_target_hides_in_a_file_that_is_not_composed():
    for path in conf_dir().rglob("*.yaml"):
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        for where, part in targets(content, path.stem):
            locate(part["_target_"], f"{where}._target_", root_dir())


def test_every_value_of_an_experiment_is_a_known_key():
    """`experiment=` files may only set what the groups declare: composing one with a typo fails."""
    with pytest.raises(ConfigError, match=r"unknown key|did you mean"):
        compose(["experiment=ivon/p2", "metrics.mc_sample=3"])
