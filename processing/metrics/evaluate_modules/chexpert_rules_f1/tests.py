"""Cases with known results."""

test_cases = [
    {
        "predictions": ["Pleural effusion.", "Cardiomegaly."],
        "references": ["No pleural effusion.", "Enlarged heart."],
        "result": {"chexpert_rules_micro_f1_5": 2 / 3},
    }
]
