"""The report of an optimization: text, JSON and one self-contained HTML page."""

from torchaccel.report._files import replacing, write_atomically
from torchaccel.report.report import Report

__all__ = ["Report", "replacing", "write_atomically"]
