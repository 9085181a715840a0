"""What a data owner runs: alignment matrices, exact tests, verdicts, and a report, from outside the model."""
