"""What every room may use: errors, limits, records, captured output, global state, sizes."""
