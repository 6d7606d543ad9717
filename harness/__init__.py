"""The bench on which a GPT is judged: suites, measures, verdicts, records, reports."""
