"""Inputs of the report as the stages would hand them over: real digits, seeded probabilities, one seeded training."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter1d

from onecycle import evaluation
from onecycle.data import Dataset
from onecycle.params import Params
from onecycle.report import ReportInputs
from onecycle.report.galleries import png_uri
from onecycle.schedule import one_cycle

ACCEPTED = {
    "accepted": True,
    "max_lr": 0.01,
    "min_lr": 0.001,
    "method": "steepest",
    "criterion": "loss",
    "reason": None,
    "advice": None,
}
REFUSED = {
    **ACCEPTED,
    "accepted": False,
    "max_lr": None,
    "min_lr": None,
    "reason": "The loss falls from 2.310 to 2.290 only: too flat to be read.",
    "advice": "Raise lr_range.end_lr, for example to 10.",
}


def range_curve(steps: int = 100) -> pd.DataFrame:
    """curve.csv of a test that learns around a rate of 0.003 and diverges near 1."""
    rate = np.geomspace(0.00001, 1, steps)
    fall = 1 / (1 + np.exp(-3 * (np.log10(rate) + 2.5)))
    noise = np.random.default_rng(0).normal(0, 0.03, steps)
    loss, accuracy = 2.35 - 0.8 * fall + 5 * rate**2 + noise, 0.1 + 0.3 * fall - noise / 3
    return pd.DataFrame(
        {
            "iteration": np.arange(steps),
            "learning_rate": rate,
            "loss": loss,
            "accuracy": accuracy,
            "smoothed_loss": gaussian_filter1d(loss, 3),
            "smoothed_accuracy": gaussian_filter1d(accuracy, 3),
        }
    )


def training(params: Params, held_out: str, steps: int = 10) -> tuple[pd.DataFrame, pd.DataFrame]:
    """history.csv and schedule.csv of `params.epochs` epochs of `steps` steps."""
    cycle = one_cycle(params.one_cycle, 0.01, params.epochs, steps)
    step, epoch = np.arange(params.epochs * steps), np.arange(1, params.epochs + 1)
    momentum = np.nan if cycle.momentum is None else cycle.momentum
    schedule = pd.DataFrame(
        {"step": step, "epoch": (step + 1) / steps, "learning_rate": cycle.learning_rate, "momentum": momentum}
    )
    train, held = 1 - 0.6 / epoch, 0.95 - 0.5 / epoch
    history = pd.DataFrame(
        {
            "epoch": epoch,
            "learning_rate": cycle.learning_rate[steps - 1 :: steps],
            "momentum": schedule["momentum"][steps - 1 :: steps].to_numpy(),
            "train_loss": 2 * (1 - train),
            "train_accuracy": train,
            f"{held_out}_loss": 2 * (1 - held),
            f"{held_out}_accuracy": held,
        }
    )
    return history, schedule


def report_inputs(dataset: Dataset, params: Params, certainty: float = 3.0) -> ReportInputs:
    """A whole set of inputs; the higher `certainty`, the fewer mistakes."""
    draw = np.random.default_rng(1)
    labels, classes = dataset.test_labels, dataset.classes
    scores = draw.gumbel(size=(len(labels), len(classes)))
    scores[np.arange(len(labels)), labels] += certainty
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    probabilities = probabilities.astype(np.float32)
    outcomes = evaluation.outcomes(probabilities, labels)
    chosen = evaluation.galleries(outcomes, dataset.test_images)
    rows = list(dict.fromkeys(index for indices in chosen.values() for index in indices))
    history, schedule = training(params, "validation" if params.data.validation_fraction else "test")
    return ReportInputs(
        params=params,
        versions={"python": "3.11.7", "torch": "2.15.0"},
        stats={
            "images": len(dataset.train_images),
            "mean": dict.fromkeys(("red", "green", "blue"), 0.3),
            "std": dict.fromkeys(("red", "green", "blue"), 0.25),
        },
        samples_png=png_bytes(dataset.train_images[0]),
        augmented_png=png_bytes(dataset.train_images[1]),
        lr_curve=range_curve(),
        suggestion=ACCEPTED,
        history=history,
        schedule=schedule,
        train_metrics={"epochs": params.epochs, "kept_epoch": params.epochs, "max_lr": 0.01, "parameters": 6_573_130},
        model_summary="Layer   Output Shape   Param #\nCustomResNet <head>   [1, 10]   6,573,130",
        metrics={**evaluation.metrics(probabilities, labels), "dataset_digest": dataset.digest},
        per_class=evaluation.per_class(outcomes, classes),
        confusion=evaluation.confusion(outcomes, classes),
        predictions=pd.DataFrame(
            {"label": outcomes.labels, "prediction": outcomes.predictions, "confidence": outcomes.confidence}
        ),
        galleries=evaluation.gallery_document(outcomes, classes, chosen, rows),
        gallery_images=dataset.test_images[rows],
        cam_predicted=draw.random((len(rows), 8, 8)).astype(np.float16),
        cam_true=draw.random((len(rows), 8, 8)).astype(np.float16),
    )


def png_bytes(pixels: Any) -> bytes:
    """(h, w, 3) uint8 as a PNG."""
    return base64.b64decode(png_uri(pixels).partition(",")[2])
