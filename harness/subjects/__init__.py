"""Subjects: from a name on the command line to a model whose weights and components can be addressed."""
