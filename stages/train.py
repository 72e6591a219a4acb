"""Train with One Cycle; go on from the last checkpoint where the same run was interrupted."""

import json
from collections.abc import Callable

import torch

from onecycle import data, history, paths
from onecycle.checkpoint import Checkpoints, code_of, identity
from onecycle.image_grid import image_grid
from onecycle.model import save_classifier, summarise
from onecycle.params import Params, flatten
from onecycle.png import save_png
from onecycle.preparation import Prepared, prepare
from onecycle.resuming import train_to_end
from onecycle.schedule import Schedule, one_cycle, peak_rate, read_suggestion
from onecycle.stage import run
from onecycle.tracking import Row
from onecycle.training import Run


def main(params: Params, row: Row) -> Callable[[], None]:
    """Read images, statistics and suggestion; write what training gives. Returns what forgets its checkpoints."""
    max_lr = peak_rate(params.one_cycle.max_lr, read_suggestion(paths.LR_RANGE_SUGGESTION))
    dataset = data.load(paths.DATASET)
    prepared = prepare(params, dataset, *data.read_statistics(paths.STATS_JSON))
    schedule = one_cycle(params.one_cycle, max_lr, params.epochs, prepared.loader.steps)
    training = Run(prepared, schedule, params.optimizer, params.train)
    row.tags(prepared.tags())
    print(f"train: on {prepared.compute}", flush=True)

    decides = {"data": dataset.digest, "learning rate": max_lr, "device": prepared.compute}
    threads = torch.get_num_threads() if prepared.compute.device.type == "cpu" else None  # a GPU sums without them
    ours = identity(flatten(params), code_of("train"), **decides, threads=threads)
    with Checkpoints(paths.training_state(), ours) as checkpoints:
        train_to_end(training, checkpoints, params, prepared.held_out, row.metrics)
        _write(training, prepared, schedule, params, dataset.classes)
    return checkpoints.clear


def _write(training: Run, prepared: Prepared, schedule: Schedule, params: Params, classes: tuple[str, ...]) -> None:
    epochs, steps = training.state.history, prepared.loader.steps
    kept_epoch, weights = training.kept_weights()
    parameters = sum(parameter.numel() for parameter in prepared.classifier.parameters())
    metrics = history.summary(epochs, prepared.held_out, kept_epoch, schedule, parameters)
    samples = prepared.loader.samples(len(classes), min(4, len(epochs)))

    paths.TRAIN.mkdir(parents=True, exist_ok=True)
    paths.MODEL.parent.mkdir(parents=True, exist_ok=True)
    save_classifier(paths.MODEL, weights, params.model, classes)
    history.history_frame(epochs, prepared.held_out).to_csv(paths.HISTORY, index=False, lineterminator="\n")
    history.schedule_frame(schedule, steps, len(epochs)).to_csv(paths.SCHEDULE, index=False, lineterminator="\n")
    paths.TRAIN_METRICS.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    paths.MODEL_SUMMARY.write_text(summarise(prepared.classifier) + "\n", encoding="utf-8")
    columns = ("as it is", *(f"epoch {epoch}" for epoch in range(1, len(samples[0]))))
    grid = image_grid(samples, classes, "Training images, augmented", column_labels=columns, break_after=1)
    save_png(grid, paths.AUGMENTED_PNG)


if __name__ == "__main__":
    run("train", main)
