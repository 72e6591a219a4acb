"""Look at the trained model with the test set: metrics, predictions, confusion, galleries with Grad-CAM."""

from __future__ import annotations

import json

import numpy as np

from onecycle import data, device, evaluation, paths
from onecycle.errors import UserError
from onecycle.gradcam import gradcam
from onecycle.model import load_classifier
from onecycle.params import Params
from onecycle.stage import run
from onecycle.tracking import Row


def main(params: Params, row: Row) -> None:
    """Evaluate models/model.pt in full precision; write results/evaluate and models/probabilities.npy."""
    dataset = data.load(paths.DATASET)
    classifier, model_file = load_classifier(paths.MODEL)
    if model_file.classes != dataset.classes:
        raise UserError(f"{paths.MODEL} knows other classes than {paths.DATASET}; run `dvc repro evaluate`")
    if params.runtime.allocator:
        device.keep_buffers_mapped()
    place = device.select_device(params.train)
    classifier = classifier.to(place)
    images, labels, batch_size = dataset.test_images, dataset.test_labels, params.evaluate.batch_size

    probabilities = evaluation.probabilities(classifier, images, batch_size, place)
    metrics = evaluation.metrics(probabilities, labels)
    if params.evaluate.tta == "mirror":
        mirrored = evaluation.probabilities(classifier, images[:, :, ::-1], batch_size, place)
        metrics["tta_accuracy"] = evaluation.accuracy(probabilities + mirrored, labels)

    outcomes = evaluation.outcomes(probabilities, labels)
    galleries = evaluation.galleries(outcomes, images)
    shown = list(dict.fromkeys(index for indices in galleries.values() for index in indices))
    targets = (outcomes.predictions[shown], outcomes.labels[shown])
    maps = gradcam(classifier, images[shown], targets, params.evaluate.gradcam_layer, place)
    predicted, true = (cam.astype(np.float16) for cam in maps)
    document = evaluation.gallery_document(outcomes, dataset.classes, galleries, shown)

    paths.EVALUATE.mkdir(parents=True, exist_ok=True)
    paths.PROBABILITIES.parent.mkdir(parents=True, exist_ok=True)
    described = json.dumps({**metrics, "dataset_digest": dataset.digest}, indent=2)
    paths.EVALUATE_METRICS.write_text(described + "\n", encoding="utf-8")
    evaluation.per_class(outcomes, dataset.classes).to_csv(paths.PER_CLASS, index=False, lineterminator="\n")
    evaluation.confusion(outcomes, dataset.classes).to_csv(paths.CONFUSION, index=False, lineterminator="\n")
    evaluation.write_predictions(paths.PREDICTIONS, outcomes)
    paths.GALLERIES.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    np.savez_compressed(paths.GALLERY_IMAGES, images=images[shown], cam_predicted=predicted, cam_true=true)
    np.save(paths.PROBABILITIES, probabilities)
    print(evaluation.headline(metrics))


if __name__ == "__main__":
    run("evaluate", main)
