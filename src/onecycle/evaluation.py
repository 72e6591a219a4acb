"""From probabilities and labels to everything one wants to know of a test: metrics, tables, galleries.

All but `probabilities` is numpy on arrays and starts without torch; scikit-learn and statsmodels wait until they are
needed. A test set in another order gives the same figures to the last bit: sums are exact (`math.fsum`), ties are
ordered by pixels.

    dvc repro -s evaluate
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from onecycle.errors import UserError

if TYPE_CHECKING:
    import torch

    from onecycle.model import Classifier

CALIBRATION_BINS = 15
CONFIDENCE = 0.95
"""Of the interval of accuracy (Wilson 1927)."""
GALLERY_IMAGES = 30
IMAGES_PER_CLASS = 3
CLASSES_SHOWN = 10
PAIRS = 20


def probabilities(
    classifier: Classifier, images: NDArray[np.uint8], batch_size: int, device: torch.device
) -> NDArray[np.float32]:
    """What `classifier`, on `device` and in evaluation mode, makes of `images`.

    Args:
        images: (N, H, W, 3) uint8, also a view or a read-only memory map.

    Returns:
        (N, classes) float32; a class more than about 100 nats behind the first underflows to 0.

    Raises:
        UserError: the model gives NaN.
    """
    import torch  # here, since whoever only reads predictions need not wait for it

    assert not classifier.training
    batches = []
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            # a copy, because torch refuses negative strides and warns of read-only memory
            batch = np.array(images[start : start + batch_size], order="C")
            batches.append(classifier(torch.from_numpy(batch).to(device)).cpu().numpy())
    result: NDArray[np.float32] = np.concatenate(batches)
    if not np.isfinite(result).all():
        raise UserError("the model's probabilities are not finite; train it again with a lower one_cycle.max_lr")
    return result


@dataclass(frozen=True)
class Outcomes:
    """What came out for each of N test images, in the test set's order."""

    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]
    confidence: NDArray[np.float32]
    """Probability of the predicted class, as it was saved."""
    losses: NDArray[np.float64]
    """Negative log-likelihood of the label in nats, at most 36.04."""

    @property
    def correct(self) -> NDArray[np.bool_]:
        """(N,) whether the prediction is the label."""
        return np.equal(self.predictions, self.labels)


def outcomes(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> Outcomes:
    """Judge (N, classes) probabilities by (N,) labels; of equal probabilities the first is the prediction.

    Losses are scikit-learn's `log_loss` image by image, with rows that sum to 1 in float64: probabilities are
    clipped to its machine epsilon, so a label whose own underflowed to 0 costs 36.04 nats, not infinity.
    """
    predictions = probabilities.argmax(axis=1)
    epsilon = np.finfo(np.float64).eps
    likelihood = _normalised(probabilities)[np.arange(len(labels)), labels]
    return Outcomes(
        labels=np.asarray(labels),
        predictions=predictions,
        confidence=probabilities[np.arange(len(labels)), predictions],
        losses=-np.log(np.clip(likelihood, epsilon, 1 - epsilon)),
    )


def metrics(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, float | int]:
    """Flat metrics of (N, classes) probabilities against (N,) labels, as means over images.

    accuracy, with its 95 % Wilson interval; top2 … top5 (equal probabilities rank by class, as in the
    prediction); loss (negative log-likelihood, nats); brier (Brier 1950: squared error summed over classes,
    0 to 2); ece (see `reliability`); precision, recall and F1 averaged over classes, 0 for one that has no
    images or predictions; wrong and n (images).
    """
    result = outcomes(probabilities, labels)
    n, classes = probabilities.shape
    told = prediction_metrics(result, classes)
    ranks = _ranks(probabilities, labels)
    squares = ((_normalised(probabilities) - np.eye(classes)[labels]) ** 2).sum(axis=1)
    return {
        **{key: told[key] for key in ("accuracy", "accuracy_low", "accuracy_high")},
        **{f"top{k}": int((ranks < k).sum()) / n for k in range(2, 6)},
        "loss": math.fsum(result.losses) / n,
        "brier": math.fsum(squares) / n,
        **told,
    }


def prediction_metrics(result: Outcomes, classes: int) -> dict[str, float | int]:
    """Those of `metrics` that predictions.parquet alone tells, so that a reader of both can check them."""
    from statsmodels.stats.proportion import proportion_confint

    n, hits = len(result.labels), int(result.correct.sum())
    low, high = proportion_confint(hits, n, alpha=1 - CONFIDENCE, method="wilson")
    bins = reliability(result.confidence, result.correct)
    precision, recall, f1, _ = _scores(result, classes, average="macro")
    return {
        "accuracy": hits / n,
        "accuracy_low": float(low),
        "accuracy_high": float(high),
        "ece": math.fsum(bins["images"] / n * (bins["accuracy"] - bins["confidence"]).abs()),
        "macro_precision": float(precision),
        "macro_recall": float(recall),
        "macro_f1": float(f1),
        "wrong": n - hits,
        "n": n,
    }


def headline(metrics: Mapping[str, float]) -> str:
    """The one line that `metrics` comes to."""
    interval = f"{metrics['accuracy_low']:.2%} to {metrics['accuracy_high']:.2%}"
    wrong = f"{metrics['wrong']:,.0f} of {metrics['n']:,.0f} wrong"
    return f"test accuracy {metrics['accuracy']:.2%} ({interval}), loss {metrics['loss']:.4f}, {wrong}"


def accuracy(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Share of (N, classes) probabilities that are highest at the (N,) label."""
    return int((probabilities.argmax(axis=1) == labels).sum()) / len(labels)


def reliability(confidence: NDArray[np.float32], correct: NDArray[np.bool_]) -> pd.DataFrame:
    """How often the classifier is right when it is so sure, in bins of equal width (low, high].

    The expected calibration error (Guo et al. 2017) is the mean over images of their bin's
    |accuracy - confidence|.

    Returns:
        A row for each bin that has images: low, high, images, accuracy, confidence (mean).
    """
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    bin_of = np.digitize(confidence.astype(np.float64), edges[1:-1], right=True)
    rows = []
    for index in np.unique(bin_of):
        inside = bin_of == index
        images = int(inside.sum())
        rows.append(
            {
                "low": edges[index],
                "high": edges[index + 1],
                "images": images,
                "accuracy": int(correct[inside].sum()) / images,
                "confidence": math.fsum(confidence[inside]) / images,
            }
        )
    return pd.DataFrame(rows)


def per_class(outcomes: Outcomes, classes: Sequence[str]) -> pd.DataFrame:
    """A row for each class: class, precision, recall, f1 (0 where undefined), support (its images)."""
    precision, recall, f1, support = _scores(outcomes, len(classes))
    return pd.DataFrame({"class": classes, "precision": precision, "recall": recall, "f1": f1, "support": support})


def confusion(outcomes: Outcomes, classes: Sequence[str]) -> pd.DataFrame:
    """A row for each pair of classes: actual, predicted, count (images)."""
    from sklearn.metrics import confusion_matrix

    counts = confusion_matrix(outcomes.labels, outcomes.predictions, labels=range(len(classes)))
    actual, predicted = np.repeat(classes, len(classes)), np.tile(classes, len(classes))
    return pd.DataFrame({"actual": actual, "predicted": predicted, "count": counts.ravel()})


def confused_pairs(outcomes: Outcomes) -> list[dict[str, Any]]:
    """The most frequent mistakes: label, prediction, count, median_loss; by count, then loss, descending."""
    wrong = ~outcomes.correct
    mistakes = pd.DataFrame(
        {"label": outcomes.labels[wrong], "prediction": outcomes.predictions[wrong], "loss": outcomes.losses[wrong]}
    )
    pairs = mistakes.groupby(["label", "prediction"])["loss"].agg(count="size", median_loss="median").reset_index()
    pairs = pairs.sort_values(["count", "median_loss"], ascending=False, kind="stable").head(PAIRS)
    return pairs.to_dict("records")  # type: ignore[return-value]


def galleries(outcomes: Outcomes, images: NDArray[np.uint8]) -> dict[str, list[int]]:
    """Which of the (N, H, W, 3) test images to look at, as indices, most telling first.

    worst: misclassified, highest loss first; per_class: the same, a few of each class, or of the ten that are wrong
    most often; unsure: correct, lowest confidence first; top_pair: the most confused pair's, highest loss first.
    """
    content = np.array([_content(image) for image in images], dtype=np.uint64)
    ties = (outcomes.labels, content)
    by_loss = np.lexsort((*ties, -outcomes.losses))
    by_confidence = np.lexsort((*ties, outcomes.confidence))
    wrong = by_loss[~outcomes.correct[by_loss]]
    right = by_confidence[outcomes.correct[by_confidence]]
    labels, predictions = outcomes.labels[wrong], outcomes.predictions[wrong]
    top = next(iter(confused_pairs(outcomes)), {"label": -1, "prediction": -1})
    of_top_pair = (labels == top["label"]) & (predictions == top["prediction"])
    missed, counts = np.unique(labels, return_counts=True)
    shown = np.sort(missed[np.argsort(-counts, kind="stable")][:CLASSES_SHOWN])
    per_label = [wrong[labels == label][:IMAGES_PER_CLASS] for label in shown]
    return {
        "worst": wrong[:GALLERY_IMAGES].tolist(),
        "per_class": [int(index) for few in per_label for index in few],
        "unsure": right[:GALLERY_IMAGES].tolist(),
        "top_pair": wrong[of_top_pair][:GALLERY_IMAGES].tolist(),
    }


def gallery_document(
    outcomes: Outcomes, classes: Sequence[str], galleries: dict[str, list[int]], rows: Sequence[int]
) -> dict[str, Any]:
    """galleries.json: class names, galleries, confused pairs. `rows` are the images in galleries.npz."""
    row_of = {index: row for row, index in enumerate(rows)}

    def entry(index: int) -> dict[str, float | int]:
        return {
            "row": row_of[index],
            "index": index,
            "label": int(outcomes.labels[index]),
            "prediction": int(outcomes.predictions[index]),
            "confidence": float(outcomes.confidence[index]),
            "loss": float(outcomes.losses[index]),
        }

    return {
        "classes": list(classes),
        "galleries": {name: [entry(index) for index in indices] for name, indices in galleries.items()},
        "pairs": confused_pairs(outcomes),
    }


def write_predictions(path: Path, outcomes: Outcomes) -> None:
    """Write index, label, prediction and confidence of each image as Parquet, small enough for git.

    Confidence stays the exact float32: with its bytes split by significance 10,000 images take about 40 KB,
    50 KB at worst. The running index all but vanishes in its deltas.
    """
    table = pa.table(
        {
            "index": pa.array(np.arange(len(outcomes.labels)), pa.uint32()),
            "label": pa.array(outcomes.labels, pa.uint8()),
            "prediction": pa.array(outcomes.predictions, pa.uint8()),
            "confidence": pa.array(outcomes.confidence, pa.float32()),
        }
    )
    pq.write_table(
        table,
        path,
        compression="zstd",
        use_dictionary=["label", "prediction"],
        column_encoding={"index": "DELTA_BINARY_PACKED", "confidence": "BYTE_STREAM_SPLIT"},
    )


def _scores(result: Outcomes, classes: int, average: str | None = None) -> Any:
    """(precision, recall, F1, support), 0 where undefined."""
    from sklearn.metrics import precision_recall_fscore_support as scores

    return scores(result.labels, result.predictions, labels=range(classes), average=average, zero_division=0)


def _normalised(probabilities: NDArray[np.float32]) -> NDArray[np.float64]:
    """Rows that sum to 1 in float64; rounded to float32 they are off by some 1e-7."""
    exact = probabilities.astype(np.float64)
    return np.asarray(exact / exact.sum(axis=1, keepdims=True))


def _ranks(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) how many classes come before the label; among equals the lower class does, as in `argmax`."""
    of_label = probabilities[np.arange(len(labels)), labels][:, None]
    lower = np.arange(probabilities.shape[1]) < labels[:, None]
    return np.asarray(((probabilities > of_label) | ((probabilities == of_label) & lower)).sum(axis=1))


def _content(image: NDArray[np.uint8]) -> int:
    """A number that depends on nothing but the image's pixels."""
    return int.from_bytes(hashlib.blake2b(image.tobytes(), digest_size=8).digest())
