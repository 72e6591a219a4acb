"""Fetch the images, check them, keep at most data.limit of each split; write data/arrays/."""

from __future__ import annotations

import os

from onecycle import data, download, paths
from onecycle.params import Params
from onecycle.stage import run
from onecycle.tracking import Row


def main(params: Params, row: Row) -> None:
    """Write the data set that `data.dataset` names. Where CIFAR-10 comes from is environment: it cannot change it."""
    if params.data.dataset == "digits":
        whole = download.digits()
    else:
        whole = download.cifar10(os.environ.get("CIFAR10_MIRROR", ""), paths.state() / "download")
    dataset = data.fewer(whole, params.data.limit, params.data.split_seed)
    data.save(dataset, paths.DATASET)
    print(
        f"{dataset.name}: {len(dataset.train_labels):,} training and {len(dataset.test_labels):,} test images "
        f"of {len(dataset.classes)} classes, digest {dataset.digest[:12]}"
    )


if __name__ == "__main__":
    run("download", main)
