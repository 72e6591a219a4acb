"""Metrics, tables and galleries: by hand, against scikit-learn, and in another order of the test set."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from sklearn import metrics as reference
from torch import Tensor, nn

from onecycle import data, evaluation, params, paths
from onecycle.download import digits
from onecycle.errors import UserError
from onecycle.model import Classifier, build_classifier, load_classifier, save_classifier
from onecycle.tracking import Row

CPU = torch.device("cpu")
CLASSES = ("cat", "deer", "dog")

# Twelve images of three classes; probabilities in sixteenths, so that sums and squares are exact.
LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2])
PROBABILITIES = (
    np.array(
        [
            [14, 1, 1],  # 0
            [8, 6, 2],  # 1
            [4, 8, 4],  # 2: wrong; its label ties with the third class for second place
            [1, 12, 3],  # 3: wrong
            [2, 12, 2],  # 4
            [6, 8, 2],  # 5: as unsure as 1
            [10, 4, 2],  # 6: wrong, as costly as 2 and 11
            [0, 16, 0],  # 7
            [1, 1, 14],  # 8
            [2, 2, 12],  # 9
            [4, 12, 0],  # 10: wrong, nothing left for its label
            [3, 9, 4],  # 11: wrong
        ],
        dtype=np.float32,
    )
    / 16
)
IMAGES = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
TEN_CLASSES = tuple("abcdefghij")
UNDERFLOW = -math.log(2.0**-52)
"""What a probability of 0 costs, 36.04 nats."""


@pytest.fixture
def outcomes() -> evaluation.Outcomes:
    return evaluation.outcomes(PROBABILITIES, LABELS)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    return torch.from_numpy(logits).softmax(dim=1).numpy()


def random_case(n: int, classes: int = 10, sharpness: float = 2) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Float32 probabilities that prefer the label, as a trained network's do."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, classes, n)
    logits = rng.normal(size=(n, classes)) + 1.5 * np.eye(classes)[labels]
    return softmax((sharpness * logits).astype(np.float32)), labels


def test_metrics_of_twelve_images_by_hand() -> None:
    found = evaluation.metrics(PROBABILITIES, LABELS)
    losses = [math.log(16 / p) for p in (14, 8, 4, 1, 12, 8, 4, 16, 14, 12, 4)] + [UNDERFLOW]
    expected = {
        "accuracy": 7 / 12,
        "accuracy_low": 0.3195113,  # (k + z²/2 ∓ z √(k (n - k) / n + z²/4)) / (n + z²), z = 1.959964
        "accuracy_high": 0.8067397,
        "top2": 10 / 12,
        "top3": 1,
        "top4": 1,
        "top5": 1,
        "loss": sum(losses) / 12,
        "brier": (6 + 104 + 224 + 378 + 24 + 104 + 248 + 0 + 6 + 24 + 416 + 234) / 256 / 12,
        # (7/15, 8/15]: 1, 2, 5; (8/15, 9/15]: 11; (9/15, 10/15]: 6; (11/15, 12/15]: 3, 4, 9, 10; then 0, 8; then 7
        "ece": (abs(2 - 1.5) + 0.5625 + 0.625 + abs(2 - 3) + abs(2 - 1.75) + 0) / 12,
        "macro_precision": (2 / 3 + 3 / 7 + 2 / 2) / 3,
        "macro_recall": (2 / 4 + 3 / 4 + 2 / 4) / 3,
        "macro_f1": (4 / 7 + 6 / 11 + 4 / 6) / 3,
        "wrong": 5,
        "n": 12,
    }
    assert list(found) == list(expected)
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=0, abs=1e-6 if key.startswith("accuracy_") else 1e-12), key


def test_tables_of_twelve_images_by_hand(outcomes: evaluation.Outcomes) -> None:
    table = evaluation.per_class(outcomes, CLASSES)
    assert table.columns.tolist() == ["class", "precision", "recall", "f1", "support"]
    assert table["class"].tolist() == list(CLASSES)
    assert table["precision"].tolist() == pytest.approx([2 / 3, 3 / 7, 1])
    assert table["recall"].tolist() == pytest.approx([2 / 4, 3 / 4, 2 / 4])
    assert table["f1"].tolist() == pytest.approx([4 / 7, 6 / 11, 4 / 6])
    assert table["support"].tolist() == [4, 4, 4]

    assert evaluation.confusion(outcomes, CLASSES).to_csv(index=False, lineterminator="\n").splitlines() == [
        "actual,predicted,count",
        "cat,cat,2",
        "cat,deer,2",
        "cat,dog,0",
        "deer,cat,1",
        "deer,deer,3",
        "deer,dog,0",
        "dog,cat,0",
        "dog,deer,2",
        "dog,dog,2",
    ]


def test_pairs_and_galleries_of_twelve_images_by_hand(outcomes: evaluation.Outcomes) -> None:
    pairs = evaluation.confused_pairs(outcomes)
    assert [(pair["label"], pair["prediction"], pair["count"]) for pair in pairs] == [(2, 1, 2), (0, 1, 2), (1, 0, 1)]
    medians = [(UNDERFLOW + math.log(4)) / 2, math.log(8), math.log(4)]
    assert [pair["median_loss"] for pair in pairs] == pytest.approx(medians)

    found = evaluation.galleries(outcomes, IMAGES)
    assert found["worst"][:2] == [10, 3]
    assert set(found["worst"][2:]) == {2, 6, 11}
    assert found["per_class"] == [3, 2, 6, 10, 11]
    assert [set(found["unsure"][i:j]) for i, j in ((0, 2), (2, 4), (4, 6), (6, 7))] == [{1, 5}, {4, 9}, {0, 8}, {7}]
    assert found["top_pair"] == [10, 11]

    rows = [10, 3, 2, 6, 11, 1, 5, 4, 9, 0, 8, 7]
    document = evaluation.gallery_document(outcomes, CLASSES, found, rows)
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["classes"] == list(CLASSES)
    assert document["pairs"] == pairs
    entry = {"row": 1, "index": 3, "label": 0, "prediction": 1, "confidence": 0.75, "loss": math.log(16)}
    assert document["galleries"]["per_class"][0] == pytest.approx(entry)


def test_of_many_classes_those_are_shown_that_are_wrong_most_often() -> None:
    """Class k of 14 has k wrong images; of each of the ten worst the three costliest are shown, class by class."""
    labels = np.repeat(np.arange(14), 14)
    wrong = np.tile(np.arange(14), 14) < labels
    probabilities = np.full((len(labels), 14), 0.01, np.float32)
    probabilities[np.arange(len(labels)), np.where(wrong, (labels + 1) % 14, labels)] = 0.87
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 4, 4, 3), np.uint8)
    found = evaluation.galleries(evaluation.outcomes(probabilities, labels), images)["per_class"]
    assert labels[found].tolist() == [label for label in range(4, 14) for _ in range(3)]
    assert wrong[found].all()


@pytest.mark.parametrize("sharpness", [0.5, 2, 100], ids=["unsure", "trained", "underflowing"])
def test_agrees_with_scikit_learn(sharpness: float) -> None:
    probabilities, labels = random_case(5_000, sharpness=sharpness)
    assert (probabilities.min() == 0) == (sharpness == 100)
    exact = probabilities.astype(np.float64)
    exact /= exact.sum(axis=1, keepdims=True)
    predictions = exact.argmax(axis=1)
    found = evaluation.metrics(probabilities, labels)
    expected = {
        "accuracy": reference.accuracy_score(labels, predictions),
        "loss": reference.log_loss(labels, exact),
        "brier": reference.brier_score_loss(labels, exact, scale_by_half=False),
        "macro_precision": reference.precision_score(labels, predictions, average="macro"),
        "macro_recall": reference.recall_score(labels, predictions, average="macro"),
        "macro_f1": reference.f1_score(labels, predictions, average="macro"),
    }
    if sharpness < 100:  # scikit-learn ranks equal probabilities the other way round than argmax
        expected |= {f"top{k}": reference.top_k_accuracy_score(labels, exact, k=k) for k in range(2, 6)}
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=0, abs=1e-12), key

    report = reference.classification_report(labels, predictions, output_dict=True)
    table = evaluation.per_class(evaluation.outcomes(probabilities, labels), [str(i) for i in range(10)])
    for row in table.to_dict("records"):
        expected = report[row["class"]]
        found = [row["precision"], row["recall"], row["f1"], row["support"]]
        assert found == pytest.approx(list(expected.values()), rel=0, abs=1e-12)


def test_calibration_error_agrees_with_its_definition() -> None:
    probabilities, labels = random_case(2_000)
    expected = 0.0
    for m in range(15):
        inside = [i for i, p in enumerate(probabilities) if m / 15 < p.max() <= (m + 1) / 15]
        if inside:
            accuracy = np.mean([probabilities[i].argmax() == labels[i] for i in inside])
            confidence = np.mean([float(probabilities[i].max()) for i in inside])
            expected += len(inside) / 2_000 * abs(accuracy - confidence)
    assert evaluation.metrics(probabilities, labels)["ece"] == pytest.approx(expected, rel=0, abs=1e-12)


def test_reliability_bins_are_closed_above_and_empty_ones_left_out() -> None:
    confidence = np.array([1 / 15, 0.5, 1.0, 1.0], dtype=np.float64)
    table = evaluation.reliability(confidence, np.array([True, False, True, False]))
    assert table["low"].tolist() == pytest.approx([0, 7 / 15, 14 / 15])
    assert table["high"].tolist() == pytest.approx([1 / 15, 8 / 15, 1])
    assert table[["images", "accuracy", "confidence"]].values.tolist() == [[1, 1, 1 / 15], [1, 0, 0.5], [2, 0.5, 1]]


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),  # Newcombe (1998), Statistics in Medicine 17:857, table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval(hits: int, n: int, low: float, high: float) -> None:
    probabilities = np.tile(np.float32([0.7, 0.1, 0.1, 0.1]), (n, 1))
    found = evaluation.metrics(probabilities, (np.arange(n) >= hits).astype(np.int64))
    assert (round(found["accuracy_low"], 4), round(found["accuracy_high"], 4)) == (low, high)


def test_equal_probabilities_rank_by_class() -> None:
    labels = np.arange(10)
    found = evaluation.metrics(np.full((10, 10), 0.1, dtype=np.float32), labels)
    assert [found[key] for key in ("accuracy", "top2", "top3", "top4", "top5")] == [0.1, 0.2, 0.3, 0.4, 0.5]


def test_a_class_without_images_or_predictions_counts_zero_without_a_warning() -> None:
    found = evaluation.metrics(np.float32([[0.6, 0.2, 0.2], [0.6, 0.2, 0.2]]), np.array([0, 1]))
    assert found["macro_precision"] == pytest.approx(0.5 / 3)
    assert found["macro_recall"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("ties", [False, True])
def test_another_order_of_the_test_set_changes_only_indices(ties: bool) -> None:
    probabilities, labels = random_case(700)
    if ties:
        probabilities = (np.round(probabilities * 16) / 16).astype(np.float32)
        probabilities[probabilities.sum(axis=1) == 0] = 0.1
    rng = np.random.default_rng(2)
    images = rng.integers(0, 256, (700, 8, 8, 3), dtype=np.uint8)
    images[1::7], probabilities[1::7], labels[1::7] = images[::7], probabilities[::7], labels[::7]  # duplicates

    def figures(order: NDArray[np.int64]) -> tuple[Any, ...]:
        p, y, x = probabilities[order], labels[order], images[order]
        outcomes = evaluation.outcomes(p, y)
        found = evaluation.galleries(outcomes, x)
        rows = list(dict.fromkeys(index for indices in found.values() for index in indices))
        document = evaluation.gallery_document(outcomes, TEN_CLASSES, found, rows)
        for entries in document["galleries"].values():
            for entry in entries:
                assert (x[rows[entry["row"]]] == x[entry["index"]]).all()
                del entry["index"]
        return (
            evaluation.metrics(p, y),
            document,
            x[rows].tobytes(),
            evaluation.per_class(outcomes, TEN_CLASSES).to_csv(),
            evaluation.confusion(outcomes, TEN_CLASSES).to_csv(),
            evaluation.reliability(outcomes.confidence, outcomes.correct).to_csv(),
        )

    plain = figures(np.arange(700))
    assert [len(gallery) for gallery in plain[1]["galleries"].values()][:3] == [30, 30, 30]
    assert len(plain[1]["pairs"]) == 20
    for _ in range(5):
        assert figures(rng.permutation(700)) == plain


@pytest.mark.parametrize("hit", [True, False], ids=["nothing wrong", "nothing right"])
def test_empty_galleries(hit: bool) -> None:
    labels = LABELS if hit else (LABELS + 1) % 3
    outcomes = evaluation.outcomes(np.eye(3, dtype=np.float32)[LABELS], labels)
    found = evaluation.galleries(outcomes, IMAGES)
    sizes = {name: len(indices) for name, indices in found.items()}
    assert sizes == (
        {"worst": 0, "per_class": 0, "unsure": 12, "top_pair": 0}
        if hit
        else {"worst": 12, "per_class": 9, "unsure": 0, "top_pair": 4}
    )
    assert len(evaluation.confused_pairs(outcomes)) == (0 if hit else 3)


def test_predictions_round_trip_exactly(tmp_path: Path, outcomes: evaluation.Outcomes) -> None:
    path = tmp_path / "predictions.parquet"
    evaluation.write_predictions(path, outcomes)
    table = pq.read_table(path)
    assert {field.name: str(field.type) for field in table.schema} == {
        "index": "uint32",
        "label": "uint8",
        "prediction": "uint8",
        "confidence": "float",
    }
    assert table["index"].to_pylist() == list(range(12))
    assert table["label"].to_pylist() == LABELS.tolist()
    assert table["prediction"].to_pylist() == [0, 0, 1, 1, 1, 1, 0, 1, 2, 2, 1, 1]
    assert (table["confidence"].to_numpy() == outcomes.confidence).all()


@pytest.mark.parametrize("worst", [False, True], ids=["a trained network's confidences", "uniform confidences"])
def test_predictions_are_the_same_bytes_and_small_enough_for_git(tmp_path: Path, worst: bool) -> None:
    probabilities, labels = random_case(10_000, sharpness=4)
    outcomes = evaluation.outcomes(probabilities, labels)
    if worst:
        outcomes = evaluation.Outcomes(
            labels, outcomes.predictions, np.random.default_rng(3).random(10_000, dtype=np.float32), outcomes.losses
        )
    one, two = tmp_path / "one.parquet", tmp_path / "two.parquet"
    evaluation.write_predictions(one, outcomes)
    evaluation.write_predictions(two, outcomes)
    assert one.read_bytes() == two.read_bytes()
    assert one.stat().st_size <= 64_000


class Corners(nn.Module):
    """Logits = the three channels of the top left pixel, and batch norm, which must not learn."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)[:, :, 0, 0]


@pytest.fixture
def classifier() -> Classifier:
    return Classifier(Corners(), [0.0] * 3, [1 / 255] * 3).eval()


def test_probabilities_do_not_depend_on_batches(classifier: Classifier) -> None:
    images = IMAGES // 16
    whole = evaluation.probabilities(classifier, images, 12, CPU)
    assert whole.dtype == np.float32
    assert whole == pytest.approx(softmax(images[:, 0, 0].astype(np.float32)), abs=1e-4)
    for batch_size in (1, 5, 1_000):
        assert (evaluation.probabilities(classifier, images, batch_size, CPU) == whole).all()


def test_probabilities_of_a_mirrored_view_and_of_a_memory_map(classifier: Classifier, tmp_path: Path) -> None:
    images = IMAGES // 16
    mirrored = evaluation.probabilities(classifier, images[:, :, ::-1], 5, CPU)
    assert mirrored == pytest.approx(softmax(images[:, 0, -1].astype(np.float32)), abs=1e-4)
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    expected = evaluation.probabilities(classifier, images, 5, CPU)
    assert (evaluation.probabilities(classifier, mapped, 5, CPU) == expected).all()


def test_a_model_that_gives_nan_is_refused(classifier: Classifier) -> None:
    classifier.std[0] = math.nan
    with pytest.raises(UserError, match="not finite"):
        evaluation.probabilities(classifier, IMAGES, 12, CPU)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> data.Dataset:
    """A folder in which evaluate can run: 60 digits to test, a network that knows some. Returns its data set."""
    root = Path(__file__).parents[1]
    monkeypatch.syspath_prepend(root)
    shipped = params.load(root / paths.PARAMS)
    monkeypatch.chdir(tmp_path)
    dataset = data.fewer(digits(), 60, seed=0)
    data.save(dataset, paths.DATASET)
    torch.manual_seed(0)
    model = shipped.model.model_copy(update={"width": 4})
    paths.MODEL.parent.mkdir()
    classifier = build_classifier(model, 10, [0.3] * 3, [0.4] * 3)
    images, labels = torch.from_numpy(dataset.test_images), torch.from_numpy(dataset.test_labels)
    for _ in range(15):  # plain gradient descent, until it predicts more than one class
        loss = nn.functional.cross_entropy(classifier.logits(images), labels)
        gradients = torch.autograd.grad(loss, list(classifier.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(classifier.parameters(), gradients, strict=True):
                parameter -= 0.1 * gradient
    save_classifier(paths.MODEL, classifier.state_dict(), model, dataset.classes)
    return dataset


def run_stage() -> None:
    shipped = params.load(Path(__file__).parents[1] / paths.PARAMS)
    evaluate = shipped.evaluate.model_copy(update={"batch_size": 32, "tta": "mirror"})
    train = shipped.train.model_copy(update={"device": "cpu"})
    main = importlib.import_module("stages.evaluate").main
    main(shipped.model_copy(update={"evaluate": evaluate, "train": train}), Row("evaluate", None))


def written() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted((*paths.EVALUATE.iterdir(), paths.PROBABILITIES))}


def test_stage(workspace: data.Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    run_stage()

    probabilities = np.load(paths.PROBABILITIES)
    expected = evaluation.metrics(probabilities, workspace.test_labels)
    metrics = json.loads(paths.EVALUATE_METRICS.read_text(encoding="utf-8"))
    classifier, _ = load_classifier(paths.MODEL)
    mirrored = evaluation.probabilities(classifier, np.flip(workspace.test_images, axis=2), 32, CPU)
    both = ((probabilities + mirrored).argmax(axis=1) == workspace.test_labels).mean()
    assert metrics == {**expected, "tta_accuracy": both, "dataset_digest": workspace.digest}
    line = capsys.readouterr().out
    assert f"test accuracy {expected['accuracy']:.2%}" in line
    assert f"{expected['wrong']} of 60 wrong" in line

    document = json.loads(paths.GALLERIES.read_text(encoding="utf-8"))
    with np.load(paths.GALLERY_IMAGES) as pictures:
        images, predicted, true = (pictures[name] for name in ("images", "cam_predicted", "cam_true"))
    assert predicted.shape == true.shape == (len(images), 8, 8)
    assert predicted.dtype == true.dtype == np.float16
    entries = [entry for gallery in document["galleries"].values() for entry in gallery]
    assert {entry["row"] for entry in entries} == set(range(len(images)))
    for entry in entries:
        assert (images[entry["row"]] == workspace.test_images[entry["index"]]).all()
        if entry["label"] == entry["prediction"]:
            assert (predicted[entry["row"]] == true[entry["row"]]).all()
    assert (predicted != true).any()

    with zipfile.ZipFile(paths.GALLERY_IMAGES) as archive:
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    first = written()
    run_stage()
    assert written() == first


def test_stage_refuses_a_model_of_other_classes(workspace: data.Dataset) -> None:
    names = tuple(f"class {index}" for index in range(10))
    data.save(dataclasses.replace(workspace, classes=names), paths.DATASET)
    with pytest.raises(UserError, match="knows other classes"):
        run_stage()
    assert not paths.EVALUATE.exists()
