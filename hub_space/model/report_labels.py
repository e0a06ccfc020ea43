"""The 14 findings of the CheXpert label set, and how a report's text is read for them.

Reading is by rules, with the standard library only: sentences are split, each finding's terms are looked up, and a
mention is positive, negative or uncertain according to the cue words whose scope reaches it. The way mentions are
combined to one label per report is CheXpert's (Irvin et al. 2019, arXiv 1901.07031); the phrase tables are this
project's own. The rules are no model: compare their scores only with scores of the same rules, under their name
(`chexpert_rules`).
"""

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

FINDINGS: tuple[str, ...] = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
NUM_FINDINGS = len(FINDINGS)

POSITIVE, NEGATIVE, UNCERTAIN = "positive", "negative", "uncertain"
LABEL_OF_STATUS: dict[str, int] = {POSITIVE: 1, NEGATIVE: 0, UNCERTAIN: -1}

# --- Terms --------------------------------------------------------------------------------------------------
# A term is a regular expression over lower-cased text with single spaces; word boundaries are added. The second column
# is the words of which one must stand in the sentence before any expression is tried: that is what makes reading fast.

_GAP = r"(?:[a-z/'-]+ ){0,3}?"  # up to three words of the same phrase, no punctuation
_LONG_GAP = r"(?:[a-z/'-]+ ){0,6}?"
_PREDICATE = r"(?:(?!normal|limits|with|without)[a-z/'-]+ ){0,6}?"  # up to a word that says how large
_HEART = (
    r"(?:heart(?! failure| rate| disease| valve)(?: size| silhouette| shadow| contours?)?"
    r"|cardiac (?:size|silhouette|shadow|contours?|outline|diameter)"
    r"|cardiac and mediastinal (?:silhouettes?|contours?))"
)
_MEDIASTINUM = (
    r"(?:(?:cardio ?-?)?mediastin(?:um|al (?:silhouettes?|contours?|structures?|width|borders?|shadows?|"
    r"configurations?))"
    r"|cardio ?-?mediastinal|mediastin(?:um|al)|cardiopericardial silhouette|aortic knob contour)"
)
_LARGE = (
    r"(?:enlarge(?:d|ment)|enlarging|prominen(?:t|ce)|large[rd]?|big|increased|dilat(?:ed|ation)|wide(?:ned|ning)?|"
    r"megaly|(?:above|exceeds) (?:the )?(?:upper )?normal)"
)

_TERMS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "Cardiomegaly",
        r"cardiomegaly|megacardia|heart|cardiac|cardiopericardial|ventric\w+|atri\w+",
        (
            r"(?:mega)?cardiomegaly",
            r"megacardia",
            rf"{_LARGE} (?:of (?:the )?)?{_GAP}{_HEART}(?! valve)",
            rf"{_HEART} {_PREDICATE}{_LARGE}",
            r"cardiac enlargement",
            rf"borderline (?:enlarged )?{_HEART}",
            rf"{_HEART} {_PREDICATE}borderline(?! normal)",
        ),
    ),
    (
        "Enlarged Cardiomediastinum",
        r"mediastin\w+|cardio-?mediastin\w+",
        (
            rf"{_LARGE} (?:of (?:the )?)?{_GAP}{_MEDIASTINUM}",
            rf"{_MEDIASTINUM} {_PREDICATE}{_LARGE}",
        ),
    ),
    (
        "Lung Opacity",
        r"opaci\w+|densit\w+|airspace|air-space|infiltrat\w+|interstitial|reticul\w+|scar\w*|peribronchial|bronchial"
        r"|haz[ey]\w*|reticulonodular|translucency|space|markings?",
        (
            r"opaci(?:ty|ties|fication|fications|fied)",
            r"(?:increased|abnormal|patchy|streaky|hazy|focal|linear|basilar|lung|pulmonary|parenchymal|airspace) "
            r"(?:[a-z-]+ )?densit(?:y|ies)",
            r"air-? ?space (?:disease|process|abnormalit(?:y|ies)|changes?|infiltrates?)",
            r"infiltrat(?:e|es|ion|ions|ive)",
            r"(?:increased|prominent|coarsened|coarse|accentuated) (?:[a-z-]+ )?interstitial(?: [a-z]+)?",
            r"interstitial (?:lung )?(?:markings?|patterns?|disease|changes?|prominence|thickening|process)",
            r"reticul(?:ar|ation|ations|onodular)(?: (?:markings?|patterns?|changes?))?",
            r"(?:parenchymal|pulmonary|lung|basilar|apical|linear) scar(?:s|ring)?",
            r"(?:peribronchial|bronchial wall) (?:cuffing|thickening)",
            r"decreased translucency",
            r"haziness",
        ),
    ),
    (
        "Lung Lesion",
        r"mass|masses|nodul\w+|lesions?|neoplas\w+|tumou?rs?|carcinoma|malignan\w+|metast\w+|lump",
        (
            r"(?<!thyroid )(?<!breast )(?<!renal )(?<!hepatic )mass(?:es)?(?! effect)",
            r"(?<!thyroid )nodul(?:es?|ar (?:densit(?:y|ies)|opacit(?:y|ies)|opacifications?|lesions?|focus|foci))",
            r"(?:lung|pulmonary|cavitary|parenchymal) lesions?",
            r"(?:lung|pulmonary|bronchogenic) (?:neoplasms?|tumou?rs?|carcinoma|cancer|malignanc(?:y|ies))",
            r"(?:lung|pulmonary) metasta(?:sis|ses)",
            r"neoplasms?|tumou?rs?",
        ),
    ),
    (
        "Edema",
        r"o?edema|failure|chf|congest\w+|overload|indistinctness|vascular",
        (
            r"(?<!soft tissue )(?<!subcutaneous )(?<!peripheral )o?edema",
            r"(?:congestive )?(?:heart|cardiac) failure",
            r"chf",
            r"(?:vascular|pulmonary|venous) (?:vascular )?congestion",
            r"(?:fluid|volume) overload",
            r"(?:vascular|perihilar) indistinctness",
        ),
    ),
    ("Consolidation", r"consolidat\w+", (r"consolidat(?:ion|ions|ive|ed)(?: (?:process|change|changes))?",)),
    (
        "Pneumonia",
        r"pneumonias?|bronchopneumonia|infecti\w+|pneumonitis",
        (r"(?:broncho)?pneumonias?", r"(?<!radiation )pneumonitis", r"infections?", r"infectious(?: [a-z]+)?"),
    ),
    (
        "Atelectasis",
        r"atelecta\w+|collapsed?",
        (
            r"(?:micro)?atelecta(?:sis|ses|tic)(?: (?:changes?|bands?))?",
            r"(?:lobe|lobar|lung|pulmonary|segmental) (?:volume )?collapsed?",
            r"collapse of the [a-z ]*(?:lobe|lung)",
        ),
    ),
    (
        "Pneumothorax",
        r"\w*pneumothora\w+|ptx",
        (r"(?:hydro|haemo|hemo)?-?pneumothora(?:x|ces|xes)", r"ptx"),
    ),
    (
        "Pleural Effusion",
        r"effusions?|fluid|hydropneumothora\w+|haemothorax|hemothorax|hydrothorax",
        (
            r"(?<!pericardial )(?<!joint )effusions?",
            r"pleural (?:space )?fluid",
            r"fluid (?:collection )?(?:in|within|along) the (?:[a-z]+ ){0,3}(?:pleural space|fissures?)",
            r"hydropneumothora(?:x|ces)",
            r"(?:hydro|haemo|hemo)thorax",
        ),
    ),
    (
        "Pleural Other",
        r"pleural?|fibrothorax|pleuro-?parenchymal|apical|fissur\w+",
        (
            r"pleural (?:based )?(?:[a-z/-]+ ){0,2}?"
            r"(?:thickening|thickenings|scar|scars|scarring|plaques?|calcifications?|fibrosis|reaction|abnormalit(?:y|"
            r"ies))",
            r"fibrothorax",
            r"(?:apical|pleural) (?:pleural )?(?:cap|caps|capping)",
            r"thicken(?:ing|ed) (?:of |in )?(?:the )?(?:[a-z]+ ){0,2}(?:pleura|fissures?)",
            r"fissural thickening",
            r"pleuro-?parenchymal scar(?:s|ring)?",
        ),
    ),
    (
        "Fracture",
        r"fractur\w+|fx",
        (r"(?:micro)?fractur(?:e|es|ed)(?: deformit(?:y|ies))?", r"fx"),
    ),
    (
        "Support Devices",
        r"tubes?|lines?|catheters?|picc|pacemakers?|pacers?|icd|aicd|defibrillators?|devices?|leads?|wires?|ports?|"
        r"stents?"
        r"|clips?|valves?|prosthe\w+|drains?|hardware|plates?|screws?|rods?|coils?|cannula|port-?a-?cath|mediport|"
        r"sternotomy"
        r"|electrodes?|pumps?|lvad|arthroplast\w+|chemoport|infuse-?a-?port|stimulator",
        (
            r"(?:endotracheal|et|ng|og|nasogastric|orogastric|enteric|feeding|chest|tracheostomy|dobhoff|thoracostomy|"
            r"gastric|"
            r"drainage|pleural|jejunostomy|gastrostomy|peg|support) tubes?",
            r"tubes? and lines?|lines? and tubes?",
            r"(?:central|central venous|venous|picc|arterial|subclavian|jugular|ij|dialysis|support|femoral|"
            r"midline) lines?",
            r"(?:[a-z-]+ )?catheters?",
            r"picc",
            r"(?:cardiac )?(?:pacemakers?|pacers?|defibrillators?)",
            r"a?icd",
            r"(?:[a-z-]+ )?(?:medical |support |implantable |electronic |assist )devices?",
            r"(?:pacing|pacer|pacemaker|icd|defibrillator|ventricular|atrial|ekg|ecg|nerve stimulator) (?:leads?|"
            r"wires?)",
            r"(?:sternal|sternotomy|median sternotomy|cerclage) (?:[a-z]+ )?(?:wires?|sutures?)",
            r"port-?a-?cath|mediport|chemoport|infuse-?a-?port",
            r"(?:chest|infusion|subclavian|jugular|chest wall|venous access|access|power) ports?",
            r"stents?",
            r"(?:surgical|vascular|cholecystectomy|metallic|hemostatic|skin) (?:clips?|staples?)",
            r"(?:prosthetic|mechanical|artificial|bioprosthetic|replaced) (?:[a-z]+ )?valves?"
            r"|valve (?:prosthes[ie]s|replacement)",
            r"prosthes[ie]s",
            r"(?:chest|pigtail|pleural|mediastinal|surgical) drains?",
            r"(?:[a-z]+ )?hardware",
            r"(?:fixation|metallic|metal|fusion|surgical|orthopedic|spinal) (?:plates?|screws?|rods?)",
            r"(?:embolization|metallic) coils?",
            r"cannula",
            r"(?:balloon|infusion) pumps?|lvad",
            r"(?:nerve|spinal cord|vagal) stimulator",
            r"arthroplast(?:y|ies)",
        ),
    ),
)

# Terms that name a sign of the finding and not the finding: affirmed, they make it uncertain.
_SIGNS: dict[str, str] = {
    "Edema": r"congestion|overload|indistinctness",
    "Lung Lesion": r"nodular",
}

# What a normal heart or mediastinum is called: a negative mention of its enlargement.
_NORMAL = (
    r"(?:(?:within|in) (?:the )?(?:upper |high |broad )?(?:limits? of )?normal(?: (?:limits?|range))?|normal|"
    r"unremarkable|"
    r"not (?:[a-z]+ )?enlarged|wnl|(?:grossly |essentially )?clear)"
)
_NORMAL_TERMS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "Cardiomegaly",
        r"heart|cardiac",
        (
            rf"{_HEART} {_LONG_GAP}{_NORMAL}",
            rf"{_HEART}, {_LONG_GAP}(?:are|is) {_GAP}{_NORMAL}",
            rf"{_NORMAL} {_GAP}{_HEART}",
        ),
    ),
    (
        "Enlarged Cardiomediastinum",
        r"mediastin\w+|cardio-?mediastin\w+",
        (
            rf"{_MEDIASTINUM} {_LONG_GAP}{_NORMAL}",
            rf"{_MEDIASTINUM}, {_LONG_GAP}(?:are|is) {_GAP}{_NORMAL}",
            rf"{_NORMAL} {_GAP}{_MEDIASTINUM}",
        ),
    ),
)

# --- Cues ---------------------------------------------------------------------------------------------------

# Looks like a negation and is none: blanked out before negations are looked for.
_PSEUDO_NEGATION = (
    r"(?:no|not|without|nor) (?:(?:any|a|significantly|significant|substantially|substantial|appreciably|"
    r"appreciable|definite|"
    r"interval|much|great|obvious|gross|major|further|focal|convincing|other) )*"
    r"(?:change[ds]?|increased?|decreased?|worsening|progression|improvement|progressed|improved|worsened|"
    r"interval change)"
    r"(?: (?:of|in|to|from|within|since))?"
    r"|not only|no longer intubated|no significant interval"
)
_UNCERTAIN_NEGATION = (
    r"(?:cannot|can not|can't|could not|not|without|difficult to|hard to)(?: [a-z]+){0,2} (?:exclude[ds]?|"
    r"excluding|rule out|"
    r"ruled out)"
)
_NEGATION = (
    r"no|not|without|w/o|negative for|free of|free from|clear of|absence of|absent|absen[ct]e? of|lack of|"
    r"lacks?|neither|nor|"
    r"never|none|non|denies|denied|rather than|resolved|resolution of|(?:interval )?clearing of|unlikely|no longer|"
    r"(?:has|have|been) cleared|ruled? out|exclude[sd]?|nonvisualization of|interval removal of|removal of|"
    r"(?:has|have) been removed|less likely|resolving of"
)
_UNCERTAINTY = (
    r"possibl[ey]|possibilit(?:y|ies)|probabl[ye]|likely|may|might|could|can be|perhaps|potential(?:ly)?|presum\w+|"
    r"suspect\w*|suspicio\w+|questionabl[ey]|questioned|question|equivocal|concerning|concern|worrisome|"
    r"suggest(?:s|ing|ive|ed|ion)?|cannot be|versus|vs|either|differential\w*|consider(?:ed|ations?)?|indeterminate|"
    r"uncertain|unclear|favou?r\w*|apparent|difficult to|if|in the (?:appropriate|proper|correct|right) clinical|"
    r"(?:evaluate|evaluation|assess|assessment|look|eval|correlate|correlation)(?: [a-z]+){0,2} for|to exclude"
)
# Mentioned, but not as something on this film.
_HISTORY = (
    r"history of|h/o|hx of|prior history|history|status post (?:recent )?(?:treatment|resection)|known history of|"
    r"comparison|indication|clinical (?:information|history)|reason for (?:exam|examination)|rule out|r/o|"
    r"previously (?:described|seen|noted|identified|demonstrated)"
)
_PAST = r"(?:prior|previous|old|remote|past|healed|treated)(?: [a-z]+){0,2} "  # an infection that is over
# What ends the reach of a cue.
_STOP = (
    r";|:|\bbut\b|\bhowever\b|\balthough\b|\bthough\b|\bwhereas\b|\bwhile\b|\bexcept(?:ing)?(?: for)?\b|"
    r"\bwith the exception of\b|\bapart from\b|\baside from\b|\bother than\b|\bbesides\b|\byet\b|\bwhich\b|"
    r"\bthere (?=(?:is|are|was|were|has|have|remains?|may|might|could|appears?)\b)|\bin spite of\b"
)
_AFFIRMED_START = (
    r"(?:(?:a|an|the|there|some|these|this|stable|unchanged|persistent|residual|chronic|old|new|mild|mildly|moderate|"
    r"moderately|severe|small|tiny|trace|minimal|minimally|large (?:left|right|bilateral)|slight|slightly|left|"
    r"right|bilateral|bibasilar|increas\w+|"
    r"decreas\w+|improv\w+|worsen\w+|heart|lungs?|cardiac|cardiomediastinal|mediastinal|possible|possibly|"
    r"probable|probably|"
    r"likely|suggest\w+|consistent|compatible|most|mid|low|interval|multiple|several|again|continued|prominent|"
    r"calcified|"
    r"degenerative|scattered|otherwise|status|postsurgical|surgical|sternotomy|patchy|streaky|linear|normal|"
    r"hyperexpanded|"
    r"hyperinflated|elevated|elevation)\b)"
)

_STOP_RE = re.compile(_STOP)
_COMMA_STOP_RE = re.compile(rf"(?:,| and| with) (?:and |with )?(?={_AFFIRMED_START})")
_WITH_STOP_RE = re.compile(r"(?<!consistent )(?<!compatible )(?<!associated )\bwith\b")
_OR_RE = re.compile(r"\b(?:or|nor|and/or)\b|[a-z]/[a-z]")
_PSEUDO_RE = re.compile(rf"\b(?:{_PSEUDO_NEGATION})\b")
_UNCERTAIN_NEGATION_RE = re.compile(rf"\b(?:{_UNCERTAIN_NEGATION})\b")
_NEGATION_RE = re.compile(rf"\b(?:{_NEGATION})\b")
_UNCERTAINTY_RE = re.compile(rf"\b(?:{_UNCERTAINTY})\b")
_HISTORY_RE = re.compile(rf"\b(?:{_HISTORY})\b")
_PAST_RE = re.compile(rf"\b{_PAST}$")
_VERB = r"(?:is|are|was|were|be|been|has|have|had|remains?|appears?|seems?)"
_ADVERB = r"(?:also|now|essentially|completely|almost|nearly|otherwise|clearly|definite(?:ly)?|definitively|since)"
_UP_TO_VERB = rf"(?:(?!\b{_VERB}\b)[^;])*?"
_SEEN = (
    r"(?:seen|identified|present|evident|visuali[sz]ed|visible|appreciated|noted|demonstrated|apparent|"
    r"observed|detected|"
    r"found|suspected|suggested|shown|recogni[sz]ed|enlarged|there)\b(?! on (?:the )?(?:lateral|frontal|pa|ap)\b)"
)
_POST_NEGATION_RE = re.compile(
    rf"^:? ?(?:no|none|absent|negative|not {_SEEN})(?=[ .,]*$)"  # as in a form: "effusion: none"
    rf"|^{_UP_TO_VERB}(?:\b{_VERB}\b )?(?:(?:{_VERB}|{_ADVERB}) )*"
    rf"\b(?:(?:not|no longer|never)(?: (?:{_ADVERB}|been|be|well|being))* {_SEEN}"
    r"|(?:absent|resolved|cleared|unlikely|ruled out|excluded|negative(?! for)|none|removed|less likely)\b)"
)
_DOUBTED = r"(?:possible|probable|likely|suspected|questioned|questionable)"
_POST_UNCERTAIN_RE = re.compile(
    rf"^{_DOUBTED}(?=[ .,]*$)"
    rf"|^{_UP_TO_VERB}(?:\b{_VERB} )?\b(?:cannot|can not|could not|can't|not)(?: [a-z]+){{0,3}} (?:excluded|"
    rf"ruled out)\b"
    rf"|^{_UP_TO_VERB}\b(?:may|might|could) (?:also )?be (?:present|considered)\b"
    rf"|^{_UP_TO_VERB}\b{_VERB} (?:(?:{_VERB}|{_ADVERB}) )*(?:{_DOUBTED}|considered|"
    r"(?:(?:a|an|also|another|in the) )*(?:possibility|consideration|concern|differential))\b"
)
_CHANGED_RE = re.compile(
    rf"^{_VERB} (?:(?:{_VERB}|{_ADVERB}|slightly|mildly|again|not) )*(?:increased|decreased|stable|unchanged|"
    rf"improved|worsened|"
    r"changed|larger|smaller|small|moderate|large|new)\b"
)
_VERSUS_RE = re.compile(r"^[ ,/]*(?:[a-z-]+ ){0,3}(?:versus|vs)\b")

_SPACE_RE = re.compile(r"\s+")
_DASHES = {ord(c): "-" for c in "‐‑‒–—−"} | {ord(c): "'" for c in "‘’"}


def _compile(table: tuple[tuple[str, str, tuple[str, ...]], ...]) -> list[tuple[str, re.Pattern, re.Pattern]]:
    return [
        (name, re.compile(rf"\b(?:{words})\b"), re.compile(rf"\b(?:{'|'.join(terms)})\b"))
        for name, words, terms in table
    ]


_TERM_RULES = _compile(_TERMS)
_NORMAL_RULES = _compile(_NORMAL_TERMS)
_SIGN_RULES = {name: re.compile(signs) for name, signs in _SIGNS.items()}

# --- Sentences ----------------------------------------------------------------------------------------------

_BREAK_RE = re.compile(
    r"\n\s*\n\s*"  # an empty line
    r"|\n\s*(?=(?:\d{1,2}[.)]|[-*•])\s)"  # a list item on its own line
    r"|\n\s*(?=[A-Za-z][A-Za-z ]{2,30}:)"  # a heading
)
_FULL_STOP_RE = re.compile(r"[.!?]+(?=\s|$)")
_NO_SPACE_STOP_RE = re.compile(r"\.(?=[A-Z])(?<=[A-Za-z]{2}[a-z]\.)")  # a full stop without the space after it
_ABBREVIATION_RE = re.compile(r"\b(?:dr|mrs?|vs|approx|i\.e|e\.g|[ap]\.m|[ap])$", re.IGNORECASE)
_LIST_NUMBER_RE = re.compile(r"\s*(?:\d{1,2}[.)]|[-*•])?\s*")
_ONLY_NUMBER_RE = re.compile(r"\(?\d{0,2}\)?[\s.]*$")


def split_sentences(text: str) -> list[str]:
    """Sentences of a report, in order, as they stand in the text, with single spaces and without list numbers.

    Line breaks inside a sentence are joined; an empty line, a list item or a heading starts a new sentence; decimals
    and common abbreviations do not.

    Raises:
        TypeError: `text` is not a string.
    """
    if not isinstance(text, str):
        raise TypeError(f"a report must be a string, not {type(text).__name__}")
    text = _NO_SPACE_STOP_RE.sub(". ", text)
    sentences = []
    for passage in _BREAK_RE.split(text) if "\n" in text else (text,):
        start = 0
        for match in _FULL_STOP_RE.finditer(passage):
            if not _ABBREVIATION_RE.search(passage, max(start, match.start() - 8), match.start()):
                sentences.append(passage[start : match.end()])
                start = match.end()
        sentences.append(passage[start:])
    cleaned = (" ".join(sentence[_LIST_NUMBER_RE.match(sentence).end() :].split()) for sentence in sentences)
    return [sentence for sentence in cleaned if not _ONLY_NUMBER_RE.match(sentence)]


def _normalise(sentence: str) -> str:
    sentence = unicodedata.normalize("NFKC", sentence) if not sentence.isascii() else sentence
    return _SPACE_RE.sub(" ", sentence.translate(_DASHES).lower()).strip()


# --- Status of a mention ------------------------------------------------------------------------------------


def _left_scope(sentence: str, start: int, end: int) -> str:
    """The words before a mention that can still change its status."""
    left = sentence[:start]
    cut = 0
    for match in _STOP_RE.finditer(left):
        cut = match.end()
    left = left[cut:]
    if _CHANGED_RE.match(sentence[end:].lstrip()):  # "no X, Y has decreased": Y opens a clause of its own
        left = left[left.rfind(",") + 1 :]
    # A comma, "and" or "with" before an affirming word ends a negation, unless the list goes on to an "or".
    if not _OR_RE.search(sentence[start:]) and not _OR_RE.search(left[-30:]):
        cut = 0
        for match in _COMMA_STOP_RE.finditer(left):
            cut = match.end()
        for match in _WITH_STOP_RE.finditer(left):
            cut = max(cut, match.end())
        left = left[cut:]
    return left


def _after_cause(left: str) -> str:
    """A negation does not reach over "due to": what is denied is the effect; a doubt does."""
    return re.split(r"\b(?:due|secondary) to\b", left)[-1]


def _right_scope(sentence: str, end: int) -> str:
    right = sentence[end:].lstrip()
    match = _STOP_RE.search(right, 1)
    return right[: match.start()] if match else right


def _status(sentence: str, start: int, end: int) -> str | None:
    """Status of the mention at [start, end), or None when it is not about this film."""
    left = _left_scope(sentence, start, end)
    right = _right_scope(sentence, end)
    if _UNCERTAIN_NEGATION_RE.search(left):
        return UNCERTAIN
    if _POST_UNCERTAIN_RE.match(right):
        return UNCERTAIN
    if _NEGATION_RE.search(_PSEUDO_RE.sub(" ", _after_cause(left) + sentence[start:end])):
        return NEGATIVE
    if _POST_NEGATION_RE.match(_PSEUDO_RE.sub(" ", right)):
        return NEGATIVE
    if _HISTORY_RE.search(left):
        return None
    if _UNCERTAINTY_RE.search(left + sentence[start:end]) or _VERSUS_RE.match(right):
        return UNCERTAIN
    return POSITIVE


def _combine(statuses: Iterable[str]) -> str:
    """CheXpert's rule: a positive mention wins, then an uncertain one, then a negative one."""
    statuses = set(statuses)
    for status in (POSITIVE, UNCERTAIN, NEGATIVE):
        if status in statuses:
            return status
    raise ValueError("no status to combine")


@lru_cache(maxsize=65536)
def sentence_statuses(sentence: str) -> tuple[tuple[str, str], ...]:
    """Pairs of finding and status that a sentence speaks of, in the order of `FINDINGS`; cached, since sentences
    recur.
    """
    sentence = _normalise(sentence)
    found: dict[str, list[str]] = {}
    for name, words, terms in _TERM_RULES:
        if not words.search(sentence):
            continue
        for match in terms.finditer(sentence):
            status = _status(sentence, match.start(), match.end())
            if name == "Pneumonia" and _PAST_RE.search(sentence[: match.start()]):
                continue
            if status == POSITIVE and name in _SIGN_RULES and _SIGN_RULES[name].search(match.group()):
                status = UNCERTAIN
            if status is not None:
                found.setdefault(name, []).append(status)
            if name == "Edema" and status != NEGATIVE and match.group().endswith(("failure", "chf")):
                found.setdefault("Cardiomegaly", []).append(UNCERTAIN)
    for name, words, terms in _NORMAL_RULES:
        if name not in found and words.search(sentence) and terms.search(sentence):
            found[name] = [NEGATIVE]
    return tuple((name, _combine(found[name])) for name in FINDINGS if name in found)


def label_sentence(sentence: str) -> list[dict[str, str]]:
    """Findings that one sentence speaks of, in the order of `FINDINGS`.

    Returns:
        `[{"name": ..., "status": "positive" | "negative" | "uncertain"}, ...]`; empty when it speaks of none.
        `No Finding` is a label of whole reports and never among them.
    """
    return [{"name": name, "status": status} for name, status in sentence_statuses(sentence)]


def label_report(text: str) -> dict[str, int | None]:
    """The 14 CheXpert-style labels of a report by rules.

    Several mentions combine as in CheXpert: positive wins over uncertain, uncertain over negative; heart failure makes
    cardiomegaly uncertain; `No Finding` is 1 when no finding but support devices is positive or uncertain.

    Args:
        text: the report (findings and impression; other sections should be left out).

    Returns:
        A dict with the 14 names of `FINDINGS` as keys and 1 (positive), 0 (negative), -1 (uncertain) or None (not
        mentioned) as values. An empty text gives None throughout: nothing was read, so nothing was ruled out.

    Raises:
        TypeError: `text` is not a string.
    """
    mentions: dict[str, list[str]] = {}
    sentences = split_sentences(text)
    for sentence in sentences:
        for name, status in sentence_statuses(sentence):
            mentions.setdefault(name, []).append(status)
    labels: dict[str, int | None] = dict.fromkeys(FINDINGS)
    for name, statuses in mentions.items():
        labels[name] = LABEL_OF_STATUS[_combine(statuses)]
    if sentences and all(
        labels[name] in (0, None) for name in FINDINGS if name not in ("No Finding", "Support Devices")
    ):
        labels["No Finding"] = 1
    return labels


__all__ = [
    "FINDINGS",
    "LABEL_OF_STATUS",
    "NEGATIVE",
    "NUM_FINDINGS",
    "POSITIVE",
    "UNCERTAIN",
    "label_report",
    "label_sentence",
    "sentence_statuses",
    "split_sentences",
]
