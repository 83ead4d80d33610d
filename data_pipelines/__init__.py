"""Offline preparation: from drawings, folders, tables and packages to ArrayRecord shards with a manifest.

Each module is a command, `python -m data_pipelines.scenes --out=data/scenes`, and a function `build`.
"""
