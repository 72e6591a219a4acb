"""A repository whose only stage makes up an evaluation from `seed` in seconds: DVC and its queue real, no training."""

from __future__ import annotations

import shutil
from pathlib import Path

from conftest import PARAMS_FILE, REPO, command
from crafted_run import commit, repository

STAGE = """
import sys
from pathlib import Path

sys.path.insert(0, {tests!r})
import numpy as np
import yaml
from crafted_run import IMAGES, write_run

params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
seed, epochs = params["seed"], params["epochs"]
if seed == 3 and epochs == 24:
    sys.exit("error: params.yaml: seed must not be 3")
draw = np.random.default_rng(seed)
write_run(Path(), draw.choice(IMAGES, 600 + 10 * draw.integers(5) + (24 - epochs), replace=False), keep_params=True)
"""

GRAPH = """
stages:
  evaluate:
    cmd: python made_up.py
    deps: [made_up.py]
    params: [seed, epochs]
    metrics:
      - results/evaluate/metrics.json: {cache: false}
    outs:
      - results/evaluate/per_class.csv: {cache: false}
      - results/evaluate/predictions.parquet: {cache: false}
"""


def seeded_repository(folder: Path) -> Path:
    """params.yaml as shipped, the stage above, one run of it, all of it committed on `main`."""
    repository(folder)
    shutil.copy(PARAMS_FILE, folder)
    (folder / "dvc.yaml").write_text(GRAPH, encoding="utf-8")
    (folder / "made_up.py").write_text(STAGE.format(tests=str(REPO / "tests")), encoding="utf-8")
    command(folder, "dvc", "init", "-q")
    for key in ("analytics", "autostage"):
        command(folder, "dvc", "config", f"core.{key}", "false")
    command(folder, "dvc", "repro", "-q")
    commit(folder, "results")
    return folder
