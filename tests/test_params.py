"""params.yaml: what is refused, in which words, and that every key is used by the graph and the other way round."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PARAMS_FILE
from pydantic import ValidationError
from ruamel.yaml import YAML

from onecycle import yaml_values
from onecycle.errors import UserError
from onecycle.params import Params, flatten, load, parse

UNLISTED = ("gate.", "runtime.")
"""Sections no stage lists: the gate judges results, and runtime cannot change one."""


def shipped() -> dict[str, Any]:
    tree = YAML(typ="safe", pure=True).load(PARAMS_FILE.read_text(encoding="utf-8"))
    assert isinstance(tree, dict)
    return tree


def changed(**values: Any) -> dict[str, Any]:
    """The file that tests take for the shipped one, with dotted keys (written with __) set."""
    tree = shipped()
    for key, value in values.items():
        *section, last = key.split("__")
        place = tree
        for name in section:
            place = place[name]
        place[last] = value
    return tree


def test_the_shipped_file_is_valid() -> None:
    keys = list(flatten(load(Path("params.yaml"))))
    assert keys == list(leaves(YAML(typ="safe", pure=True).load(Path("params.yaml").read_text(encoding="utf-8"))))
    assert keys == list(leaves(shipped())), "what is new in params.yaml goes into tests/params.yaml, too"
    params = load(PARAMS_FILE)
    assert (params.epochs, params.batch_size, params.one_cycle.max_at_epoch) == (24, 512, 5)
    assert params.training_images() == 45_000


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"epochs": 0}, "epochs must be ≥ 1, got 0"),
        ({"epochs": -3}, "epochs must be ≥ 1, got -3"),
        ({"epochs": "5"}, 'epochs must be an integer, got "5"'),
        ({"epochs": 2.5}, "epochs must be an integer, got 2.5"),
        ({"epochs": True}, "epochs must be an integer, got true"),
        ({"epochs": None}, "epochs must be an integer, got null"),
        ({"epochs": 5, "one_cycle__max_at_epoch": 5}, "one_cycle.max_at_epoch must be < epochs (5), got 5.0"),
        ({"one_cycle__max_at_epoch": 30}, "one_cycle.max_at_epoch must be < epochs (24), got 30.0"),
        ({"optimizer__name": "adm"}, 'optimizer.name must be one of "adam", "adamw", "sgd", got "adm"'),
        ({"model__name": "vgg"}, 'model.name must be one of "custom_resnet", "resnet18", got "vgg"'),
        ({"data__dataset": "mnist"}, 'data.dataset must be one of "cifar10", "digits", got "mnist"'),
        ({"train__precision": "int8"}, 'train.precision must be one of "auto", "bf16", "fp16", "fp32", got "int8"'),
        ({"batch_size": 45_001}, "batch_size must be ≤ the training split (45000 images), got 45001"),
        ({"data__limit": 100}, "batch_size must be ≤ the training split (90 images), got 512"),
        ({"one_cycle__max_lr": -0.1}, "one_cycle.max_lr must be 'auto' or a number > 0, got -0.1"),
        ({"one_cycle__max_lr": float("nan")}, "one_cycle.max_lr must be 'auto' or a number > 0, got nan"),
        ({"one_cycle__max_lr": float("inf")}, "one_cycle.max_lr must be 'auto' or a number > 0, got inf"),
        ({"one_cycle__max_lr": 10**400}, f"one_cycle.max_lr must be 'auto' or a number > 0, got 1{'0' * 56}…"),
        ({"epochs": -(16**5000)}, f"epochs must be ≥ 1, got -0x1{'0' * 53}…"),  # more digits than Python spells
        ({"train__threads": 10**12}, "train.threads must be ≤ 4096, got 1000000000000"),
        ({"model__width": 1025}, "model.width must be ≤ 1024, got 1025"),
        ({"lr_range__start_lr": float("nan")}, "lr_range.start_lr must be a finite number, got nan"),
        ({"optimizer__weight_decay": 1e300}, "optimizer.weight_decay must be ≤ 3.4e+38, got 1e+300"),
        ({"one_cycle__max_lr": 1e300}, "one_cycle.max_lr must be 'auto' or a number > 0, got 1e+300"),
        ({"lr_range__start_lr": 20.0}, "lr_range.end_lr must be ≥ 1.01 · lr_range.start_lr (20), got 10.0"),
        (
            {"one_cycle__base_momentum": 0.99},
            "one_cycle.base_momentum must be ≤ one_cycle.max_momentum (0.95), got 0.99",
        ),
        ({"optimizer__nme": "adam"}, "unknown key optimizer.nme; did you mean optimizer.name?"),
        ({"optimiser": {}}, "unknown key optimiser; did you mean optimizer?"),
        ({"zzzz": 1}, "unknown key zzzz; params.yaml documents the known ones"),
        ({"data": 3}, "data must be a section with keys of its own, got 3"),
        ({"train__compile": 3}, 'train.compile must be one of "auto", true, false, got 3'),
        ({"runtime__workers": 1.5}, "runtime.workers must be 'auto' or an integer from 0 to 1024, got 1.5"),
        (
            {"train__keep": "best", "data__validation_fraction": 0},
            "train.keep must be last where data.validation_fraction holds out no image "
            '(nothing is selected on the test set), got "best"',
        ),
        (
            {
                "train__early_stop_patience": 3,
                "data": {**shipped()["data"], "limit": 40, "validation_fraction": 0.01},
                "batch_size": 20,
            },
            "train.early_stop_patience must be 0 where data.validation_fraction holds out no image "
            "(nothing is selected on the test set), got 3",
        ),
    ],
)
def test_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as refusal:
        parse("params.yaml", changed(**change))
    assert str(refusal.value) == f"params.yaml: {sentence}"


def test_a_missing_key_is_named() -> None:
    tree = shipped()
    del tree["one_cycle"]["div_factor"]
    with pytest.raises(UserError, match=r"^params\.yaml: key one_cycle\.div_factor is missing$"):
        parse("params.yaml", tree)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("seed: [", "params.yaml, line 1: not valid YAML"),
        ("- 1", "params.yaml must hold keys and values, got a list"),
        ("seed: {a: 1}\n5: 1", "params.yaml: unknown key 5; params.yaml documents the known ones"),
        ("", "params.yaml must hold keys and values, got null"),
        ("seed: 0\nseed: 1\n", "params.yaml, line 2: not valid YAML: found duplicate key"),
        ("seed: !!int ''", "params.yaml: cannot be read as YAML: "),
        ("seed: !!bool x", "params.yaml: cannot be read as YAML: "),
        ("seed: !!timestamp x", "params.yaml, line 1: not valid YAML: failed to construct timestamp"),
        ("a: !!python/object:os.system {}", "params.yaml, line 1: not valid YAML: could not determine a constructor"),
    ],
)
def test_broken_files(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as refusal:
        load(path)
    assert str(refusal.value).startswith(sentence)
    assert "\n" not in str(refusal.value)


def growing(first: str, other: str) -> str:
    """A document of twenty levels, each of which stands for ten of the one before."""
    levels = (f"a{n + 1}: &a{n + 1} {other.format(', '.join([f'*a{n}'] * 10))}\n" for n in range(20))
    return f"a0: &a0 {first}\n{''.join(levels)}seed: *a20\n"


BOMBS = growing("[x]", "[{}]"), growing("{x: 1}", "{{<<: [{}]}}")


@pytest.mark.parametrize("text", BOMBS, ids=["aliases", "merges"])
def test_a_few_lines_that_stand_for_billions_of_values(tmp_path: Path, text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"^params\.yaml: cannot be read as YAML: holds more than 100,000 values$"):
        load(path)
    with pytest.raises(ValueError, match=r"holds more than 100,000 values$"):  # as of another revision
        yaml_values.load(text)


def test_an_anchor_may_be_defined_again(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    text = PARAMS_FILE.read_text(encoding="utf-8")
    twice = text.replace("seed: 0\n", "seed: &a 0\n").replace("epochs: 24\n", "epochs: &a 24\n")
    assert twice.count("&a") > 1
    path.write_text(twice, encoding="utf-8")
    assert load(path) == load(PARAMS_FILE)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"params\.yaml is missing"):
        load(tmp_path / "params.yaml")


def test_small_rates_are_numbers_however_they_are_written(tmp_path: Path) -> None:
    """DVC writes `-S one_cycle.max_lr=0.00001` as 1e-05, which YAML 1.1 readers take for a string."""
    path = tmp_path / "params.yaml"
    path.write_text(PARAMS_FILE.read_text(encoding="utf-8").replace("max_lr: auto", "max_lr: 1e-05"), "utf-8")
    assert load(path).one_cycle.max_lr == 1e-05


def test_params_are_frozen() -> None:
    params = load(Path("params.yaml"))
    with pytest.raises(ValidationError):
        params.epochs = 3  # type: ignore[misc]


def test_every_key_is_listed_by_a_stage_and_every_listed_key_exists() -> None:
    graph = YAML(typ="safe", pure=True).load(Path("dvc.yaml").read_text(encoding="utf-8"))
    listed = {key for stage in graph["stages"].values() for key in stage.get("params", [])}
    keys = list(flatten(load(Path("params.yaml"))))
    sections = {key.rpartition(".")[0] for key in keys} - {""}
    assert listed <= {*keys, *sections}
    unlisted = [key for key in keys if key not in listed and key.rpartition(".")[0] not in listed]
    assert [key for key in unlisted if not key.startswith(UNLISTED)] == []
    assert not any(key.startswith(UNLISTED) for key in listed)


def test_the_stage_refuses_in_one_line_and_half_a_second(tmp_path: Path) -> None:
    """Exit 2, one line, and neither torch nor anything as slow is imported."""
    repo = Path.cwd()
    (tmp_path / "params.yaml").write_text("epochs: 0\n", encoding="utf-8")
    code = (
        f"import sys; sys.path.insert(0, {str(repo)!r})\n"
        "from onecycle.exits import exit_with\nfrom stages.params import main\n"
        "import atexit; atexit.register(lambda: print(*sys.modules))\nexit_with(main)"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert time.perf_counter() - started < 10  # a hang, not a measurement
    assert done.returncode == 2
    assert done.stderr == "error: params.yaml: key seed is missing\n"
    assert not {"torch", "numpy", "pandas", "mlflow", "albumentations"} & set(done.stdout.split())


def test_params_has_no_defaults() -> None:
    for model in (Params, *(field.annotation for field in Params.model_fields.values())):
        fields = getattr(model, "model_fields", {})
        assert all(field.is_required() for field in fields.values())
