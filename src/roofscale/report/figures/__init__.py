"""Figures of a run, a phase, a knob and a search."""
