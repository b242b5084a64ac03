"""Forecasts of a run's memory, time and cost, from measured runs and traced training steps."""
