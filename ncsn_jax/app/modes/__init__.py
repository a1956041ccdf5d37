"""The modes of `main.py` besides training, one or two close ones per file; `_run` has what they share."""
