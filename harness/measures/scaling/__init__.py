"""Measures of programs that fit scaling laws: on tables of runs whose law is known."""
