"""The report: everything one wants to look at after training, in one self-contained page, and the same as figures.

    dvc repro -s report        # results/report/index.html and results/report/figures/*.png

It draws and tells, and computes nothing that needs torch; so a change of wording trains and evaluates nothing again.
"""

from onecycle.report.figures import figures
from onecycle.report.inputs import ReportInputs, read
from onecycle.report.page import page

__all__ = ["ReportInputs", "figures", "page", "read"]
