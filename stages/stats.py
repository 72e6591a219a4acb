"""Mean and deviation of each channel over the training images, and a look at them; writes results/stats/."""

from __future__ import annotations

import numpy as np

from onecycle import data, paths
from onecycle.image_grid import image_grid
from onecycle.params import Params
from onecycle.png import save_png
from onecycle.stage import run
from onecycle.tracking import Row

COLUMNS = 10


def main(params: Params, row: Row) -> None:
    """Statistics of all training images, validation images among them: no label enters, and the test set is apart."""
    dataset = data.load(paths.DATASET)
    images, labels = dataset.train_images, dataset.train_labels
    mean, std = data.channel_statistics(images)
    paths.STATS.mkdir(parents=True, exist_ok=True)
    data.write_statistics(paths.STATS_JSON, len(images), mean, std)
    first_of_each = [images[np.flatnonzero(labels == label)[:COLUMNS]] for label in range(len(dataset.classes))]
    title = f"{dataset.name}: the first training images of each class"
    save_png(image_grid(first_of_each, dataset.classes, title), paths.SAMPLES_PNG)
    print("mean", *(f"{value:.8f}" for value in mean), "std", *(f"{value:.8f}" for value in std))


if __name__ == "__main__":
    run("stats", main)
