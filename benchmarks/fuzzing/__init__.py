"""What benchmarks.fuzz is made of: seeds of each format, mutations of them, and the readers that must bear them."""
