"""Engine and student in turns, round after round; the medians as one document, and that as tables."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from onecycle.bench.worker import Worker
from onecycle.params import Params
from onecycle.tables import Page, Table

Turn = tuple[str, ...]
STUDENT: Turn = ("student",)
ARITHMETIC = ("precision", "convolution")
TURN_SECONDS = 1.0


def measure(params: Params, seconds: float, turn_seconds: float = TURN_SECONDS) -> dict[str, Any]:
    """The document of what came out of as many rounds as fit into so many seconds, one at least.

    A round before them only warms up: what a process does once (loading libraries, compiling) is told apart.

    Raises:
        UserError: a process ended by itself, the device or the data set does not fit `params`.
    """
    with Worker("onecycle.bench.engine:Engine") as engine, Worker("onecycle.bench.student:Student") as student:
        _say("starting")
        engine.build(params)
        about = engine.ask("about")
        student.build(params, about["kind"])
        _say("warming up")
        turns: list[Turn] = [*about["turns"], STUDENT]
        first: dict[Turn, float] = {}
        rounds: list[dict[Turn, float]] = []

        def take(turn: Turn) -> float:
            before = time.monotonic()
            worker = student if turn == STUDENT else engine
            rate: float = worker.ask("rate", turn, turn_seconds)
            first.setdefault(turn, time.monotonic() - before)
            return rate

        for turn in turns:
            take(turn)
        started, longest = time.monotonic(), 0.0
        while not rounds or time.monotonic() - started + longest <= seconds:
            _say(f"round {len(rounds) + 1}")
            begun = time.monotonic()
            # there and back, so that a machine that slows down is no one's disadvantage
            rounds.append({turn: take(turn) for turn in turns[:: -1 if len(rounds) % 2 else 1]})
            longest = max(longest, time.monotonic() - begun)
    return document(about, params.batch_size, first, rounds)


def _say(what: str) -> None:
    print(f"bench: {what}", file=sys.stderr, flush=True)


def document(
    about: Mapping[str, Any], batch_size: int, first: Mapping[Turn, float], rounds: Sequence[Mapping[Turn, float]]
) -> dict[str, Any]:
    """Everything that is known, for JSON: each rate is the median over rounds, with its lowest and highest.

    Args:
        about: of the engine, see there.
        first: seconds of each turn in the round that warmed up.
        rounds: rates, by turn: images a second, for ("matrix", …) and ("convolution", …) operations a second.
    """
    flop = about["flop_per_image"]
    peaks = _peaks(rounds)

    def figure(turn: Turn, precision: str | None = None) -> dict[str, Any]:
        rates = [each[turn] for each in rounds]
        rate = median(rates)
        found: dict[str, Any] = {"images_per_second": rate, "lowest": min(rates), "highest": max(rates)}
        if precision:
            found |= {
                "flop_per_second": rate * flop,
                "matrix_peak_share": rate * flop / peaks[precision]["flop_per_second"],
            }
            found["first_turn_seconds"] = first[turn]
        return found

    def figures(part: str, *names: str) -> list[dict[str, Any]]:
        named = {turn: dict(zip(names, turn[1:], strict=True)) for turn in about["turns"] if turn[0] == part}
        return [words | figure(turn, words.get("precision")) for turn, words in named.items()]

    inputs, training = figures("input", "backend"), figures("training", "backend", *ARITHMETIC)
    backend = about["chosen"][0]
    ours = next(each for each in training if tuple(each[name] for name in ("backend", *ARITHMETIC)) == about["chosen"])
    reading = next(each["images_per_second"] for each in inputs if each["backend"] == backend)
    student = figure(STUDENT, None if about["kind"] == "cuda" else "fp32")  # there torch's default is TF32
    return {
        "device": about["device"],
        "threads": about["threads"],
        "images": about["images"],
        "batch_size": batch_size,
        "rounds": len(rounds),
        "flop_per_image": flop,
        "matrix_peak": list(peaks.values()),
        "input": inputs,
        "forward_backward": figures("network", *ARITHMETIC),
        "training": training,
        "end_to_end": ours | {"input_share": ours["images_per_second"] / reading},
        "student": student,
        "ratio": ours["images_per_second"] / student["images_per_second"],
        "matrix_peak_share": ours["matrix_peak_share"],
        "epoch_seconds": about["epoch_images"] / ours["images_per_second"],
        "versions": about["versions"],
    }


def _peaks(rounds: Sequence[Mapping[Turn, float]]) -> dict[str, dict[str, Any]]:
    """By precision, the most that this machine multiplies: a matrix product's rate, or a convolution's if that is more.

    A convolution is a matrix product, too, and on some CPUs torch has the better code for it.
    """
    peaks = {}
    for precision in (turn[1] for turn in rounds[0] if turn[0] == "matrix"):
        rates = {
            name: median(each[turn, precision] for each in rounds)
            for turn, name in (("matrix", "matrix product"), ("convolution", "3×3 convolution"))
        }
        of = max(rates, key=rates.__getitem__)
        peaks[precision] = {"precision": precision, "flop_per_second": rates[of], "of": of, "measured": rates}
    return peaks


def page(document: Mapping[str, Any]) -> Page:
    """The document for a terminal of 80 columns."""
    ours = document["end_to_end"]
    winograd = any(each["convolution"] == "winograd" for each in document["training"])
    rows = [
        *(_row(f"input, {each['backend']}", each) for each in document["input"]),
        *(_row(f"forward + backward, {_arithmetic(each)}", each) for each in document["forward_backward"]),
        *(_row(f"end to end, {_arithmetic(each)}, {each['backend']}", each) for each in document["training"]),
        _row("student's loop", document["student"]),
    ]
    peaks = (
        f"{each['precision']} {_short(each['flop_per_second'])}FLOP/s ({each['of']})"
        for each in document["matrix_peak"]
    )
    return [
        f"{document['device']}, {document['threads']} CPU threads, torch {document['versions']['torch']}; "
        f"peak: {', '.join(peaks)}",
        f"{document['images']}, batch {document['batch_size']}, {document['flop_per_image'] / 1e9:.3f} GFLOP an image "
        "forward and backward",
        Table(
            f"Median of {document['rounds']} round{'s' if document['rounds'] > 1 else ''}",
            ("", "images/s", "spread", "FLOP/s", "of peak"),
            rows,
        ),
        f"params.yaml takes {_arithmetic(ours)} and {ours['backend']}: {document['ratio']:.2f} times the student's "
        f"loop; input is {ours['input_share']:.1%} of it, an epoch's training {document['epoch_seconds']:.1f} s, "
        f"its first turn (with compilation, if any) {ours['first_turn_seconds']:.1f} s",
        *(["Winograd's FLOP are those that it saves, too, so that it may be above the peak."] if winograd else []),
    ]


def _arithmetic(figure: Mapping[str, Any]) -> str:
    """Short, since Winograd's convolutions are there in fp32 only, and strips in bf16."""
    return str(figure["precision"] if figure["convolution"] == "direct" else figure["convolution"])


def _row(name: str, figure: Mapping[str, Any]) -> list[str]:
    rate = figure["images_per_second"]
    cells = [name, f"{rate:,.0f}", f"±{(figure['highest'] - figure['lowest']) / 2 / rate:.1%}"]
    if "flop_per_second" not in figure:
        return [*cells, "", ""]
    return [*cells, _short(figure["flop_per_second"]), f"{figure['matrix_peak_share']:.0%}"]


def _short(rate: float) -> str:
    """A rate with the prefix that leaves few digits: 820 G, 788.1 T."""
    return f"{rate / 1e12:,.1f} T" if rate >= 1e12 else f"{rate / 1e9:,.0f} G"
