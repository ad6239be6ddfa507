"""What every layer may know: errors, ids, the clock, configuration, task ownership. Imports nothing of ours."""
