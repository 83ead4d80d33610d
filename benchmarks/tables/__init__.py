"""The pages of benchmarks/, written from the JSON files in benchmarks/results: README.md and details.md."""
