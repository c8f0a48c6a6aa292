"""Recurrent cells from Python functions: a step is traced into a program for the kernels."""

from .define import Cell
from .errors import StepError

__all__ = ["Cell", "StepError"]
