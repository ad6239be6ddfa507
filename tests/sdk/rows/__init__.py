"""Rows of the table, by what they are about."""

from __future__ import annotations

from . import checkpoints, commands, control, errors, files, services, sprites

__all__ = ["checkpoints", "commands", "control", "errors", "files", "services", "sprites"]
