"""The modes of `main.py` besides training, one or two close ones per file; `shared` has what they share."""
