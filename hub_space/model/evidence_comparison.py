"""What another gaze changes: two evidence records of one film side by side.

The first record comes from gaze that the model predicted, the second from gaze that was given. Sentences of the same
words are the same sentence; of the others, those that speak of the same findings are one sentence that changed.
"""

from .errors import InputError

COMPARISON_SCHEMA = "gaze2report.comparison/1"
# Smaller changes of a probability are not worth a line; the JSON has them all.
MIN_CHANGE = 0.01


def compare_evidence(predicted: dict, given: dict) -> dict:
    """Changes from one evidence record to another of the same film.

    Args:
        predicted: record along predicted gaze.
        given: record along given gaze.

    Returns:
        `schema`, `image`, `model`, `sources` of both gazes; `findings`, all 14 with both probabilities, regions and
        boxes, the largest change first; `sentences` that were `added`, `removed`, `changed` (both texts) or `kept` with
        other evidence (both sides' `fixations`, `support` and `supported`); `sweep`, regions that only one reading
        visited.

    Raises:
        InputError: the records are not of one film.
    """
    if predicted["image"]["sha256"] != given["image"]["sha256"]:
        raise InputError(f"{predicted['image']['name']} and {given['image']['name']} are different films.")
    return {
        "schema": COMPARISON_SCHEMA,
        "image": given["image"],
        "model": given["model"],
        "sources": {"predicted": predicted["gaze"]["source"], "given": given["gaze"]["source"]},
        "findings": _findings(predicted, given),
        "sentences": _sentences(predicted, given),
        "sweep": _sweep(predicted, given),
    }


def _findings(predicted: dict, given: dict) -> list[dict]:
    before = {finding["name"]: finding for finding in predicted["findings"]}
    changes = []
    for after in given["findings"]:
        name = after["name"]
        change = {"name": name, "change": round(after["probability"] - before[name]["probability"], 4)}
        for key in ("probability", "region", "box"):
            change[key] = {"predicted": before[name][key], "given": after[key]}
        changes.append(change)
    return sorted(changes, key=lambda change: -abs(change["change"]))


def _sentences(predicted: dict, given: dict) -> dict[str, list]:
    before, after = list(predicted["sentences"]), list(given["sentences"])
    kept, changed = [], []
    for sentence in given["sentences"]:
        same = next((one for one in before if one["text"] == sentence["text"]), None)
        if same is not None:
            before.remove(same)
            after.remove(sentence)
            evidence = {key: {"predicted": _grounds(same)[key], "given": _grounds(sentence)[key]} for key in _GROUNDS}
            if any(sides["predicted"] != sides["given"] for sides in evidence.values()):
                kept.append({"text": sentence["text"], **evidence})
    for sentence in list(after):
        names = {finding["name"] for finding in sentence["findings"]}
        same = next((one for one in before if names and {find["name"] for find in one["findings"]} == names), None)
        if same is not None:
            before.remove(same)
            after.remove(sentence)
            changed.append({"predicted": same["text"], "given": sentence["text"]})
    return {
        "added": [sentence["text"] for sentence in after],
        "removed": [sentence["text"] for sentence in before],
        "changed": changed,
        "kept": kept,
    }


_GROUNDS = ("num_fixations", "boxes", "support", "supported")


def _grounds(sentence: dict) -> dict:
    """What a sentence rests on, comparable between readings, whose fixations have other numbers."""
    return {"num_fixations": len(sentence["fixations"])} | {key: sentence[key] for key in _GROUNDS[1:]}


def _sweep(predicted: dict, given: dict) -> dict[str, list[str]]:
    before, after = (
        {region: None for step in record["sweep"] for region in step["visited"]} for record in (predicted, given)
    )
    return {
        "only_predicted": [region for region in before if region not in after],
        "only_given": [region for region in after if region not in before],
    }


def comparison_text(comparison: dict) -> str:
    """The comparison for a terminal, a line for each change."""
    lines = []
    for finding in comparison["findings"]:
        if abs(finding["change"]) < MIN_CHANGE:
            continue
        sides = finding["probability"]
        line = f"finding   {finding['name']}: {sides['predicted']:.2f} -> {sides['given']:.2f}"
        if finding["region"]["predicted"] != finding["region"]["given"]:
            line += f", {finding['region']['predicted'] or 'not seen'} -> {finding['region']['given'] or 'not seen'}"
        lines.append(line)
    sentences = comparison["sentences"]
    lines += [f"removed   {text}" for text in sentences["removed"]]
    lines += [f"added     {text}" for text in sentences["added"]]
    lines += [f"changed   {one['predicted']} -> {one['given']}" for one in sentences["changed"]]
    for one in sentences["kept"]:
        changes = [
            f"{words} {one[key]['predicted']} -> {one[key]['given']}"
            for key, words in (("num_fixations", "fixations"), ("support", "support"), ("supported", "supported"))
            if one[key]["predicted"] != one[key]["given"]
        ]
        if one["boxes"]["predicted"] != one["boxes"]["given"]:
            changes.append("other boxes")
        lines.append(f"evidence  {one['text']} ({'; '.join(changes)})")
    for key, words in (("only_predicted", "predicted"), ("only_given", "given")):
        if comparison["sweep"][key]:
            lines.append(f"visited   by {words} gaze alone: {', '.join(comparison['sweep'][key])}")
    return "\n".join(lines) or "nothing changed"


__all__ = ["COMPARISON_SCHEMA", "compare_evidence", "comparison_text"]
