"""The modes of `main.py` besides training, one or two related modes per file; `shared` has common code."""
