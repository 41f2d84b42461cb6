"""One file per experiment; `default.py` lists every option."""
