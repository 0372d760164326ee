"""Samplers are tables: pure host arithmetic in double precision.

Only :mod:`noise` and what it is made of need torch; nothing here imports them.
"""

from farm.worker.samplers.program import Draw, Program, Step
from farm.worker.samplers.registry import compile_program

__all__ = ["Draw", "Program", "Step", "compile_program"]
