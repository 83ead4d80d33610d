"""What depends on the machine and on nothing else: its processor, memory and GPUs, and what is set for them.

Imports nothing here: `environment` is used before JAX and NumPy are imported.
"""
