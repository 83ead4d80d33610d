"""Offline preparation: from drawings, folders, tables and packages to ArrayRecord shards with a manifest.

Each command is a module, as in `python -m data_pipelines.scenes --out=data/scenes`, with a function `build`.
"""
