"""Cases with known results."""

test_cases = [
    {
        "predictions": [[[0.2, 0.2, 0.2], [0.5, 0.5, 0.2], [0.8, 0.3, 0.2]]],
        "references": [[[0.2, 0.2, 0.2], [0.5, 0.5, 0.2], [0.8, 0.3, 0.2]]],
        "result": {"scanmatch": 1.0, "sed": 0.0},
    }
]
