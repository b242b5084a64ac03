"""What a run will take, foreseen from runs that were measured."""
