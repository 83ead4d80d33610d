"""Train and evaluate CLIP- and SigLIP-style dual encoders in JAX. Start with README.md and `clipjax --help`."""
