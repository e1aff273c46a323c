"""Suites, scoring and reports. All of this imports in a blink: models are loaded only by WhisperOwnDecoder."""

from .asr import evaluate_asr
from .baseline import WhisperOwnDecoder
from .compare import compare
from .report import write_report

__all__ = ["WhisperOwnDecoder", "compare", "evaluate_asr", "write_report"]
