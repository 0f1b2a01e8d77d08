"""Owns the examination of an installation: what keeps jobs from running or slows them down, each finding with the command that mends it.

It must not change anything, nor print: the command line and pages show the same findings.
"""

from jobrunner.doctor.examination import CHECK_TIMEOUT, GROUPS, examine
from jobrunner.doctor.findings import Finding, Limits, State

__all__ = ["CHECK_TIMEOUT", "GROUPS", "Finding", "Limits", "State", "examine"]
