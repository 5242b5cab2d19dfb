"""What vizlog costs, measured beside what people use today: `python -m benchmarks`, or `python -m benchmarks NAME`."""
