"""What an operator runs: one runbook a file."""
