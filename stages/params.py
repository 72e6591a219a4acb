"""Refuse a bad params.yaml before DVC deletes any output. Writes a constant, so nothing downstream reruns for it."""

from onecycle import paths
from onecycle.exits import exit_with
from onecycle.params import load


def main() -> None:
    """Check params.yaml; write results/params/valid."""
    load(paths.PARAMS)
    paths.PARAMS_VALID.parent.mkdir(parents=True, exist_ok=True)
    paths.PARAMS_VALID.write_text("params.yaml is valid\n", encoding="utf-8")


if __name__ == "__main__":
    exit_with(main)
