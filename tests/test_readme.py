"""README.md and CONTRIBUTING.md against what is here: commands run or exist, files exist, errors are quoted."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import shutil
import sqlite3
import sys
from pathlib import Path

import pytest
import yaml
from conftest import REPO, clone, command, set_params
from dvc.cli.parser import get_main_parser

from onecycle import paths, readme
from onecycle.cli import parser
from onecycle.tracking.database import opened
from onecycle.tracking.errors import StoreError

TEXTS = {name: (REPO / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md")}
README = TEXTS["README.md"]

RUN = (
    "make table",
    "dvc exp show",
    "dvc metrics diff",
    "dvc params diff",
    "dvc plots diff",
    "dvc repro",
    "dvc repro -f -s evaluate",
    "dvc remote add --default store /mnt/shared/onecycle",
    "dvc push",
    "dvc pull",
    "dvc repro --pull",
    "onecycle sync",
    "onecycle compare main workspace",
    "onecycle compare main workspace --pictures where.html",
    "onecycle summary --picture seeds.png",
    "onecycle check-lock",
    "onecycle show main",
)
"""Those run here, in this order, on a workspace whose pipeline has run; `/mnt/shared` is a folder of the test's."""

NOT_RUN = {
    "makes an environment or checks this repository: the workflow's tests run them": (
        "make demo",
        "make test",
        "make test-all",
        "make check",
        "make soak",
        "make repro",
        "source .venv/bin/activate",
        "git checkout .",
        "dvc checkout --allow-missing",
        ".venv/bin/pre-commit install",
    ),
    "trains; a slow test here, or test_pipeline, test_queue, test_replicate and test_reproduce do it": (
        "dvc exp apply demo",
        "dvc exp run --name longer -S epochs=8",
        "dvc exp run -S epochs=12 -S one_cycle.max_at_epoch=3",
        "dvc exp run --queue -S seed=1,2,3",
        "dvc queue start",
        "onecycle reproduce longer --from train",
        "onecycle reproduce main --from evaluate",
        "onecycle reproduce main --from-scratch",
        "onecycle reproduce main --env",
        "onecycle replicate -n 5",
    ),
    "needs runs, a model or pictures that are not here; their own tests have them": (
        "onecycle compare demo longer",
        "onecycle compare one-sweep-50k page",
        "onecycle compare a1,a2,a3 b1,b2,b3",
        "onecycle compare one-sweep-50k workspace",
        "onecycle gate --baseline demo --candidate longer",
        "onecycle show longer",
        "onecycle gate --baseline main",
        "onecycle gate --baseline models:/onecycle-cifar10@champion --promote",
        "onecycle predict cat.jpg dogs/",
        "onecycle record exp-name --recipe page",
        "onecycle reproduce page/seed-0",
        "onecycle summary --readme",
    ),
    "serves until it is stopped, measures for minutes, or needs a server": (
        "make ui",
        "onecycle bench",
        "onecycle sync --from-git",
        "onecycle sync --relocate",
        "mlflow server --backend-store-uri postgresql+psycopg2://mlflow@127.0.0.1/mlflow "
        "--artifacts-destination s3://onecycle/artifacts",
        "export MLFLOW_TRACKING_URI=http://127.0.0.1:5000",
        "dvc remote add s3store s3://onecycle/dvc",
        "dvc remote modify s3store endpointurl http://127.0.0.1:5055",
        "dvc push -r s3store",
        "uv pip install dvc-s3",
    ),
    "is for a repository in another state": (
        "git fetch --unshallow",
        "git checkout --ours dvc.lock results",
        "dvc commit --force",
        "dvc repro --force",
        "dvc exp save",
        "dvc config --local core.no_scm true",
    ),
    "tests of their own": (
        "pytest tests/test_architecture.py",
        "pytest tests/test_readme.py",
    ),
    "has an argument of the reader's": (
        "dvc exp run -S model.name=plain_net",
        "dvc exp run -S data.dataset=shirts",
        "dvc repro -s <stage>",
        "onecycle record <run> --recipe <name>",
        "onecycle reproduce RUN",
        "dvc exp push origin NAME",
    ),
}

PROGRAMS = ("make", "dvc", "onecycle", "mlflow", "git", "pytest", "uv", "source", "export", ".venv/bin/pre-commit")
KNOWN = {*RUN, *(one for some in NOT_RUN.values() for one in some)}


def commands(text: str) -> list[str]:
    """Those in blocks of shell, and those in a sentence that are more than a name (`dvc exp show` is one)."""
    found = []
    for block in re.findall(r"^ *```sh\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            bare = shlex.join(shlex.split(line, comments=True)) if not re.search(r"[;&]", line) else line
            found += [" ".join(part.split()) for part in re.split(r"; |&& ", bare.partition(" #")[0])]
    return [one for one in found if one]


def inline(text: str) -> list[str]:
    """Commands within sentences."""
    prose = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE)
    prose = re.sub(r"<!--.*?-->", "", prose, flags=re.DOTALL)
    quoted = [" ".join(one.split()) for one in re.findall(r"`([^`\n]+)`", prose)]
    return [one for one in quoted if one.split()[0] in PROGRAMS and " " in one]


TABLE = README.partition(readme.BEGIN)[2].partition(readme.END)[0]


def recipes() -> dict[str, dict[str, str]]:
    """Name → overrides of each recipe in the README's table that `dvc exp run` makes."""
    rows = re.findall(r"^dvc exp run (.*) # (\S+)$", TABLE.replace("\\\n", " "), re.MULTILINE)
    found = {name: dict(word.split("=", 1) for word in line.split() if "=" in word) for line, name in rows}
    assert len(found) > 3
    return found


@pytest.mark.parametrize("name", TEXTS)
def test_every_command_is_classified_and_none_is_stale(name: str) -> None:
    page = [*commands(TEXTS[name]), *(line for line in inline(TEXTS[name]) if len(line.split()) > 2)]
    assert {line for line in page if not is_recipe(line)} <= KNOWN, "add it to RUN, or to NOT_RUN with the reason"
    everywhere = {line for text in TEXTS.values() for line in (*commands(text), *inline(text))}
    assert everywhere >= KNOWN


def is_recipe(line: str) -> bool:
    """One of the table, which results/reference vouches for."""
    return line in commands(TABLE)


@pytest.mark.parametrize("line", sorted({one for text in TEXTS.values() for one in (*commands(text), *inline(text))}))
def test_every_command_exists(line: str) -> None:
    program, *words = shlex.split(line)
    match program:
        case "make":
            targets = re.findall(r"^([a-z-]+):.*##", (REPO / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
            assert set(words) <= set(targets)
        case "onecycle":
            if len(words) > 1:
                assert parser().parse_args(words).run
            else:
                assert asked_for_help(words[0]) == 0
        case "dvc":
            assert get_main_parser().parse_args(words).func
        case "mlflow":
            known = command(REPO, "mlflow", words[0], "--help").stdout
            assert all(re.search(rf"{word}\b", known) for word in words if word.startswith("--"))
        case "pytest":
            assert all((REPO / word).exists() for word in words)
        case "export":
            assert re.fullmatch(r"[A-Z_]+=\S+", *words)
        case "source":
            assert words == [".venv/bin/activate"]
        case "git":
            assert words[0] in command(REPO, "git", "--list-cmds=main").stdout.split()
        case "uv" | ".venv/bin/pre-commit":
            command(REPO, str(Path(sys.executable).parent / Path(program).name), words[0], "--help")
        case _:
            pytest.fail(f"nobody knows {program}")


def asked_for_help(name: str) -> object:
    """How `onecycle <name> --help` ends: 0 where there is such a command, 2 where there is none."""
    with pytest.raises(SystemExit) as ended:
        parser().parse_args([name, "--help"])
    return ended.value.code


@pytest.mark.timeout(1200)
def test_the_cheap_ones_run(workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (workspace / ".venv").mkdir()
    (workspace / ".venv/bin").symlink_to(Path(sys.executable).parent)
    (workspace / ".venv/.ready").write_text(f"{(workspace / '.venv').resolve()}\n", encoding="utf-8")
    for line in RUN:
        words = shlex.split(line.replace("/mnt/shared/onecycle", str(tmp_path / "store")))
        done = command(workspace, *words)
        if line == "dvc push":
            shutil.rmtree(workspace / ".dvc/cache")
            shutil.rmtree(workspace / "models")
        if line == "dvc repro --pull":
            assert "Running stage" not in done.stdout
    assert (workspace / paths.MODEL).exists()
    assert (workspace / "where.html").stat().st_size and (workspace / "seeds.png").stat().st_size


@pytest.mark.parametrize("overrides", recipes().values(), ids=recipes())
def test_the_params_stage_takes_each_recipe(overrides: dict[str, str], tmp_path: Path) -> None:
    for name in ("src", "stages"):
        (tmp_path / name).symlink_to(REPO / name)
    shutil.copy(REPO / "params.yaml", tmp_path)
    set_params(tmp_path, {key: yaml.safe_load(value) for key, value in overrides.items()})
    command(tmp_path, "python", "-m", "stages.params", ONECYCLE_TRACKING="off")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_each_recipe_trains_on_digits(tmp_path: Path) -> None:
    folder = clone(tmp_path / "repo")
    set_params(folder, {"batch_size": 160})  # a rate of 0.4 is for batches of 512
    for overrides in (recipes()[name] for name in ("one-sweep-50k", "page")):
        changes = [word for key, value in overrides.items() for word in ("-S", f"{key}={value}")]
        command(folder, "dvc", "exp", "run", *changes)
        values = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
        for key, value in overrides.items():
            section, _, last = key.rpartition(".")
            assert (values[section] if section else values)[last] == yaml.safe_load(value)
        assert (folder / paths.REPORT_HTML).exists()


def test_the_picture_of_the_pipeline_is_the_pipeline() -> None:
    drawn = set()
    for line in README.partition("```mermaid\n")[2].partition("```")[0].splitlines()[1:]:
        groups = [part.split(" & ") for part in line.strip().split(" --> ")]
        drawn |= {(one, other) for first, second in itertools.pairwise(groups) for one in first for other in second}
    stages = yaml.safe_load((REPO / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    made = {
        next(iter(out)) if isinstance(out, dict) else out: name
        for name, stage in stages.items()
        for out in (*stage.get("outs", ()), *stage.get("metrics", ()))
    }
    assert drawn == {(made[dep], name) for name, stage in stages.items() for dep in stage["deps"] if dep in made}


def test_what_the_tree_names_is_there() -> None:
    block = README.partition("## The tree")[2].partition("```\n")[2].partition("```")[0]
    names = 0
    for line in block.splitlines():
        inner = line.startswith("  ")
        for name in re.findall(r"[\w/]+\.(?:py|yaml)|[\w/]+/(?=[\s:])", line):
            home = REPO / "src/onecycle" if inner and not name.endswith(".yaml") else REPO
            assert (home / name).exists(), name
            names += 1
    assert names > 40


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", TEXTS[name]):
        assert target.startswith("https://") or (REPO / target).exists(), target


def test_the_speed_it_tells_was_measured() -> None:
    found = json.loads((REPO / "results/bench/intel-xeon-2-cores.json").read_text(encoding="utf-8"))
    assert found["rounds"] > 1 and found["end_to_end"]["backend"] == "batched"
    rate, share = found["end_to_end"]["images_per_second"], found["matrix_peak_share"]
    assert f"input included: {rate:.0f} images/s, {share:.0%}".replace("%", " %") in " ".join(README.split())
    assert f"trains {found['ratio']:.1f} times as fast as a plain PyTorch loop" in " ".join(README.split())
    student = found["student"]["images_per_second"]
    [in_fp32] = [one for one in found["training"] if (one["backend"], one["precision"]) == ("batched", "fp32")]
    ratio = in_fp32["images_per_second"] / student
    told = f"in bf16 against {student:.0f} in fp32; in fp32, too, it is {ratio:.1f} times as fast"
    assert told in " ".join(README.split())


def test_knobs_are_knobs() -> None:
    tree = yaml.safe_load((REPO / "params.yaml").read_text(encoding="utf-8"))
    rows = re.findall(r"^\| (`.*?) \|", README.partition("## Change a knob")[2].partition("\n## ")[0], re.MULTILINE)
    assert len(rows) > 5
    for row in rows:
        section = ""
        for name in re.findall(r"`(.*?)`", row):
            head, _, last = name.rpartition(".")
            section = head or (section if name.startswith(".") else "")
            assert last in (tree[section] if section else tree), name


def test_quoted_errors_are_what_is_said(tmp_path: Path) -> None:
    section = README.partition("## When it fails")[2].partition("\n## ")[0]
    quoted = re.findall(r"^\| `(.*?)`", section, re.MULTILINE)
    sources = "\n".join(file.read_text(encoding="utf-8") for file in (REPO / "src").rglob("*.py"))
    file = tmp_path / "mlflow.db"
    other = sqlite3.connect(file)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreError) as refused, opened(file, seconds=0.1) as connection:
        connection.execute("BEGIN IMMEDIATE")
    other.close()
    assert len(quoted) > 6
    of_sqlite = ["database is locked", "disk image is malformed"]  # test_tracking_store has the other
    assert [sentence for sentence in quoted if sentence not in sources] == of_sqlite
    assert of_sqlite[0] in str(refused.value)
