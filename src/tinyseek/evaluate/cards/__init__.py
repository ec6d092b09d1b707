"""The sections of the report card: each file reads what some kinds of stages left behind, and draws it."""
