"""Run checks on a subject, in this process or in one of its own."""
