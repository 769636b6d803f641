"""A config becomes a run: functions, shapes, step, evaluation, summary."""
