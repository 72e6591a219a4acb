"""Sweep the learning rate over the training split and read a peak rate for One Cycle from the curve."""

import json
from dataclasses import asdict, replace
from functools import partial

import torch
from torch.nn import functional as F

from onecycle import data, figures, paths
from onecycle.device import InPrecision
from onecycle.lr_range import Curve, mean_curve, range_test
from onecycle.optimizer import build_optimizer, l1_penalty
from onecycle.params import Params
from onecycle.png import save_png
from onecycle.preparation import Prepared, prepare
from onecycle.stage import run
from onecycle.suggestion import suggest
from onecycle.tracking import Row


def main(params: Params, row: Row) -> None:
    """Read images and statistics; write curve.csv, suggestion.json and curve.png."""
    dataset, statistics = data.load(paths.DATASET), data.read_statistics(paths.STATS_JSON)
    seeds = range(params.lr_range.sweeps)  # not the run's: those that differ in it alone share a rate, and its test
    curve = mean_curve([_sweep(params, prepare(params, dataset, *statistics, seed=seed), row) for seed in seeds])
    suggestion = suggest(curve, params.lr_range, params.one_cycle.div_factor)

    paths.LR_RANGE.mkdir(parents=True, exist_ok=True)
    frame = curve.to_frame(params.lr_range.smoothing)
    frame.to_csv(paths.LR_RANGE_CURVE, index=False, lineterminator="\n")
    paths.LR_RANGE_SUGGESTION.write_text(json.dumps(asdict(suggestion), indent=2) + "\n", encoding="utf-8")
    save_png(figures.lr_range_figure(frame, asdict(suggestion)), paths.LR_RANGE_PNG)
    if suggestion.accepted:
        source = f"{suggestion.method} {suggestion.criterion}"
        print(f"LRMAX {suggestion.max_lr:.3g}, LRMIN {suggestion.min_lr:.3g} ({source})")
    else:
        print(f"no rate suggested: {suggestion.reason} {suggestion.advice}")


def _sweep(params: Params, prepared: Prepared, row: Row) -> Curve:
    compute = prepared.compute
    if compute.precision == torch.float16:
        compute = replace(compute, precision=torch.float32)  # a sweep has no loss scaling, without which they vanish
    network = InPrecision(prepared.classifier, compute)
    row.tags(replace(prepared, compute=compute).tags())
    momentum = params.one_cycle.base_momentum if params.one_cycle.cycle_momentum else None  # the peak's
    return range_test(
        network,
        build_optimizer(network, params.optimizer, params.lr_range.start_lr, momentum),
        partial(F.cross_entropy, label_smoothing=params.train.label_smoothing),
        prepared.loader.endless(),
        params.lr_range,
        compute.device,
        penalty=partial(l1_penalty, network, params.optimizer),
    )


if __name__ == "__main__":
    run("lr_range", main)
