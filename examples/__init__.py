"""The figures of the NCSN paper, and others, as scripts that run in minutes on a CPU.

Each is run from the top directory, as in `python -m examples.figure3`, and writes a PNG file.
"""
