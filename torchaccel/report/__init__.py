"""The report of an optimization: text, JSON, one self-contained HTML page, TensorBoard events."""

from torchaccel.report._events import summary_writer
from torchaccel.report._files import replacing, write_atomically
from torchaccel.report.report import Report

__all__ = ["Report", "replacing", "summary_writer", "write_atomically"]
