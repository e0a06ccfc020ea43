"""Cases with known results."""

test_cases = [
    {
        "predictions": ["the heart is normal"],
        "references": ["the heart is normal"],
        "result": {"bleu_1": 1.0, "rouge_l": 1.0},
    }
]
