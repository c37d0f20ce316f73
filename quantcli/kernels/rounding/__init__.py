"""Rounding in phases: codes chosen under scales that stand in the blocks already."""
