"""The reports of the phantom simulator: a grammar with alternatives, and question-answer pairs.

A template such as `"[There is|Note is made of] {a} {severity} {side} pleural effusion{change}."` is expanded by
drawing one alternative per bracket (brackets nest) and filling the slots. A sentence never contradicts the film:
negative statements are made only of what is absent. A finding left uncertain is worded so that a rule-based labeler
reads it as uncertain.
"""

# ruff: noqa: E501  (a template is read best on one line)

import re
from dataclasses import dataclass, field

import numpy as np

from ..report_labels import FINDINGS
from .phantom_anatomy import SIDES, Anatomy
from .phantom_findings import AIRSPACE, Finding, lesion_radius

TOPICS = ("devices", "lungs", "pleura", "heart", "mediastinum", "bones")
TOPIC_OF = {
    "Enlarged Cardiomediastinum": "mediastinum",
    "Cardiomegaly": "heart",
    "Lung Opacity": "lungs",
    "Lung Lesion": "lungs",
    "Edema": "lungs",
    "Consolidation": "lungs",
    "Pneumonia": "lungs",
    "Atelectasis": "lungs",
    "Pneumothorax": "pleura",
    "Pleural Effusion": "pleura",
    "Pleural Other": "pleura",
    "Fracture": "bones",
    "Support Devices": "devices",
}

SEVERITY = {
    "small": (
        ("trace", "minimal", "tiny", "very small"),
        ("small", "mild"),
        ("moderate", "moderate-sized"),
        ("large", "massive"),
    ),
    "degree": (("minimal", "slight", "subtle"), ("mild",), ("moderate",), ("severe", "marked")),
    "density": (
        ("subtle", "faint", "minimal"),
        ("mild", ""),
        ("moderate", "extensive", ""),
        ("dense", "extensive", "large"),
    ),
}
PRIOR = "[the prior study|the prior film|the prior radiograph|the previous examination|the prior examination]"
CHANGES = {
    "new": [f", new [since|compared with] {PRIOR}", ", which is new"],
    "increased": [
        f", [increased|worse|more prominent] [compared with|than on|since] {PRIOR}",
        f", which has [increased|worsened|progressed] since {PRIOR}",
        ", [increased|worsened] in the interval",
    ],
    "decreased": [
        f", [decreased|improved|less prominent] [compared with|since] {PRIOR}",
        f", which has [decreased|improved] since {PRIOR}",
        ", [decreased|improved] in the interval",
    ],
    "unchanged": [
        f", [unchanged|stable|not significantly changed|similar] [compared with|since] {PRIOR}",
        ", [stable|unchanged] in the interval",
        ", [unchanged|stable]",
    ],
}

# category or kind -> (scale, sure sentences, uncertain sentences, sure short forms, uncertain short forms)
PHRASES: dict[str, tuple[str, list[str], list[str], list[str], list[str]]] = {
    "Cardiomegaly": (
        "degree",
        [
            "[The heart is|The cardiac silhouette is|Heart size is|The heart size is] {adverb} enlarged{change}.",
            "[There is|] {severity} [cardiomegaly|enlargement of the cardiac silhouette|enlargement of the "
            "heart]{change}.",
            "{Severity} cardiomegaly [is present|is seen|is noted]{change}.",
        ],
        [
            "[The heart size is|The cardiac silhouette is] [at the upper limits of normal|borderline in size], and "
            "[mild|] cardiomegaly [is possible|cannot be excluded].",
            "[Possible|Questionable] [mild|slight|] cardiomegaly{change}.",
        ],
        ["{severity} cardiomegaly"],
        ["possible cardiomegaly", "possible mild cardiomegaly"],
    ),
    "Enlarged Cardiomediastinum": (
        "degree",
        [
            "[The mediastinum|The mediastinal contour|The superior mediastinum|The upper mediastinum] is {adverb} "
            "[widened|enlarged]{change}.",
            "There is {severity} [widening of the mediastinum|mediastinal widening|widening of the superior "
            "mediastinum]{change}.",
        ],
        [
            "[Possible|Questionable] [widening of the mediastinum|mediastinal widening]{change}.",
            "[The mediastinum may be|The mediastinal contour may be] [slightly|mildly|] widened{change}.",
        ],
        ["{severity} mediastinal widening", "widened mediastinum"],
        ["possible mediastinal widening"],
    ),
    "Lung Opacity": (
        "density",
        [
            "[There is|There is|Note is made of] {a} {severity} [hazy|ill-defined|ground-glass] opacity in "
            "{place}{change}.",
            "{A} {severity} [hazy|ill-defined|ground-glass] opacity [is seen|is present|is noted|projects] [in|over] "
            "{place}{change}.",
            "[Hazy|Ill-defined] {severity} opacification of {place}{change}.",
        ],
        [
            "[Possible|Questionable] [hazy|subtle|faint|] opacity in {place}{change}.",
            "[A|] [subtle|faint] opacity in {place} [is possible|cannot be excluded]{change}.",
        ],
        ["{severity} {where} opacity", "hazy opacity in {place}"],
        ["possible {where} opacity"],
    ),
    "Consolidation": (
        "density",
        [
            "There is {severity} consolidation [in|of] {place}[ with air bronchograms|]{change}.",
            "{Severity} [consolidation|airspace consolidation|focal consolidation] [is seen|is present|is noted] in "
            "{place}[ with air bronchograms|]{change}.",
            "[Focal|Lobar|Confluent] consolidation [in|of] {place}{change}.",
        ],
        [
            "[Possible|Questionable] [early|] consolidation in {place}{change}.",
            "[Early|Developing] consolidation in {place} [is possible|cannot be excluded]{change}.",
        ],
        ["{severity} {where} consolidation", "consolidation in {place}"],
        ["possible {where} consolidation"],
    ),
    "Pneumonia": (
        "density",
        [
            "{Severity} patchy [opacity|opacities|airspace opacities] in {place} [consistent with|compatible with|in "
            "keeping with|representing] pneumonia{change}.",
            "[There are|] {severity} patchy opacities in {place}, [consistent with|compatible with|due to] "
            "pneumonia{change}.",
            "[Patchy|Heterogeneous] opacity [is seen|is present] in {place}, [consistent with|compatible with] "
            "pneumonia{change}.",
        ],
        [
            "{Severity} patchy [opacity|opacities] in {place} may represent pneumonia{change}.",
            "[Patchy|Heterogeneous] opacity in {place}, [possibly pneumonia|possible pneumonia|suspicious for "
            "pneumonia]{change}.",
        ],
        ["{where} pneumonia", "pneumonia in {place}"],
        ["possible {where} pneumonia", "possible pneumonia in {place}"],
    ),
    "Edema": (
        "degree",
        [
            "There is {severity} [pulmonary edema|pulmonary edema with perihilar haze|interstitial edema]{change}.",
            "{Severity} [pulmonary|interstitial] edema [is present|is seen|is noted]{change}.",
            "[Perihilar haze and septal lines|Indistinct vessels and septal lines|Cephalization and perihilar haze] "
            "[indicate|represent|are consistent with] {severity} pulmonary edema{change}.",
        ],
        [
            "[Possible|Questionable] [mild|minimal|] [pulmonary|interstitial] edema{change}.",
            "[Mild|Minimal] [pulmonary|interstitial] edema [is possible|cannot be excluded]{change}.",
        ],
        ["{severity} pulmonary edema"],
        ["possible mild pulmonary edema", "possible edema"],
    ),
    "linear atelectasis": (
        "degree",
        [
            "There is {severity} [linear|bandlike|discoid|platelike] atelectasis in {place}{change}.",
            "{Severity} [linear|bandlike|discoid|subsegmental] atelectasis [is seen|is present|is noted] in "
            "{place}{change}.",
            "[Linear|Bandlike|Platelike] atelectasis in {place}{change}.",
        ],
        [
            "[Possible|Questionable] [linear|mild|] atelectasis in {place}{change}.",
            "[Linear|Minor] atelectasis in {place} [is possible|cannot be excluded]{change}.",
        ],
        ["{severity} {where} atelectasis", "{where} linear atelectasis"],
        ["possible {where} atelectasis"],
    ),
    "basal atelectasis": (
        "degree",
        [
            "There is {severity} {base} atelectasis [with volume loss|with elevation of the hemidiaphragm|]{change}.",
            "{Severity} [volume loss and atelectasis|atelectasis] [is seen|is present|is noted] at {bases}{change}.",
            "{Severity} {base} atelectasis{change}.",
        ],
        [
            "[Possible|Questionable] [mild|] {base} atelectasis{change}.",
            "{Base} atelectasis [is possible|cannot be excluded]{change}.",
        ],
        ["{severity} {base} atelectasis"],
        ["possible {base} atelectasis"],
    ),
    "nodule": (
        "small",
        [
            "[There is|There is|Note is made of] {a} {size} [pulmonary|lung|] nodule in {place}{change}.",
            "{A} {size} [rounded|round|well-defined|spiculated|] nodule [is seen|is present|projects] [in|over] "
            "{place}{change}.",
            "[Pulmonary|Lung] nodule in {place} [measuring|measures] [approximately|about|] {size}{change}.",
        ],
        [
            "[Possible|Questionable] {size} nodule in {place}{change}.",
            "[A|] [small|faint|] nodule in {place} [is possible|cannot be excluded]{change}.",
        ],
        ["{where} nodule", "{size} nodule in {place}"],
        ["possible {where} nodule"],
    ),
    "mass": (
        "small",
        [
            "[There is|There is|Note is made of] {a} {size} [lung|pulmonary|] mass in {place}{change}.",
            "{A} {size} [rounded|lobulated|spiculated|] mass [is seen|is present|projects] [in|over] {place}{change}.",
        ],
        [
            "[Possible|Questionable] mass in {place}{change}.",
            "[A|An underlying] mass in {place} [is possible|cannot be excluded]{change}.",
        ],
        ["{where} mass", "{where} lung mass, suspicious for malignancy"],
        ["possible {where} mass"],
    ),
    "granuloma": (
        "small",
        [
            "[There is|] [a|] [small|] [calcified nodule|calcified granulomatous nodule] in {place}{change}.",
            "[A calcified nodule|A dense calcified nodule|A calcified nodule, likely a granuloma,] [is seen|projects] "
            "[in|over] {place}{change}.",
        ],
        ["[Possible|Questionable] calcified nodule in {place}{change}."],
        ["calcified nodule in {place}"],
        ["possible calcified nodule in {place}"],
    ),
    "nodules": (
        "small",
        [
            "[There are|Note is made of] [multiple|several|numerous] [bilateral|] [pulmonary|lung] nodules [in both "
            "lungs|throughout both lungs|]{change}.",
            "[Multiple|Several|Numerous] [rounded|] nodules [are seen|are present] [in|throughout] both lungs{change}.",
        ],
        ["[Possible|Questionable] [multiple|several|] nodules in both lungs{change}."],
        ["multiple bilateral pulmonary nodules", "multiple lung nodules"],
        ["possible pulmonary nodules"],
    ),
    "Pneumothorax": (
        "small",
        [
            "[There is|There is|Note is made of] {a} {severity} {side} [apical|] pneumothorax{change}.",
            "{A} {severity} {side} pneumothorax [is seen|is present|is noted|is identified]{change}.",
            "{Severity} {side} pneumothorax{change}.",
        ],
        [
            "[Possible|Questionable] [small|tiny|] {side} pneumothorax{change}.",
            "[A|] [tiny|small] {side} [apical|] pneumothorax [is possible|cannot be excluded]{change}.",
        ],
        ["{severity} {side} pneumothorax"],
        ["possible {side} pneumothorax", "possible small {side} pneumothorax"],
    ),
    "Pleural Effusion": (
        "small",
        [
            "[There is|There is|Note is made of] {a} {severity} {side} pleural effusion{change}.",
            "{A} {severity} {side} pleural effusion [is seen|is present|is noted|is identified]{change}.",
            "{Severity} {side} pleural effusion{change}.",
            "[Blunting|Obscuration] of the {side} costophrenic angle [consistent with|compatible with|due to] {a} "
            "{severity} pleural effusion{change}.",
        ],
        [
            "[Possible|Questionable] [small|trace|] {side} pleural effusion{change}.",
            "[A|] [trace|small] {side} pleural effusion [is possible|cannot be excluded]{change}.",
        ],
        ["{severity} {side} pleural effusion"],
        ["possible {side} pleural effusion", "possible small {side} pleural effusion"],
    ),
    "pleural thickening": (
        "degree",
        [
            "There is {severity} {side} [pleural thickening|lateral pleural thickening]{change}.",
            "{Severity} pleural thickening [is seen|is present|is noted] [along the {side} chest wall|on the "
            "{side}|in the {side} hemithorax]{change}.",
        ],
        ["[Possible|Questionable] [mild|] {side} pleural thickening{change}."],
        ["{severity} {side} pleural thickening"],
        ["possible {side} pleural thickening"],
    ),
    "apical cap": (
        "degree",
        [
            "There is {severity} {side} [apical pleural thickening|apical pleural cap|pleural thickening at the "
            "apex]{change}.",
            "{Severity} [apical pleural thickening|pleural thickening] [is seen|is present|is noted] on the "
            "{side}{change}.",
        ],
        ["[Possible|Questionable] [mild|] {side} apical pleural thickening{change}."],
        ["{severity} {side} apical pleural thickening"],
        ["possible {side} apical pleural thickening"],
    ),
    "pleural plaques": (
        "degree",
        [
            "[There are|Note is made of] [calcified|] {side} pleural plaques{change}.",
            "[Calcified|] pleural plaques [are seen|are present|are noted] [on the {side}|along the {side} chest "
            "wall|over the {side} lung]{change}.",
        ],
        ["[Possible|Questionable] [calcified|] {side} pleural plaques{change}."],
        ["{side} pleural plaques"],
        ["possible {side} pleural plaques"],
    ),
    "rib fracture": (
        "degree",
        [
            "There {isare} {displaced} {fracture} {ofribs}{change}.",
            "{Displaced} {fracture} {ofribs} {isare} [seen|present|noted|identified]{change}.",
        ],
        ["[Possible|Questionable] {nondisplaced} {fracture} {ofribs}{change}."],
        ["{side} rib {fractures}"],
        ["possible {side} rib {fractures}"],
    ),
    "clavicle fracture": (
        "degree",
        [
            "There is {displaced} fracture of the {side} clavicle{change}.",
            "{Displaced} {side} clavicle fracture [is seen|is present|is noted]{change}.",
        ],
        ["[Possible|Questionable] fracture of the {side} clavicle{change}."],
        ["{side} clavicle fracture"],
        ["possible {side} clavicle fracture"],
    ),
    "pacemaker": (
        "degree",
        [
            "[A|] {side} [chest wall|-sided|pectoral] pacemaker [is in place|is present|is seen|is noted] [with leads "
            "projecting over the right heart|with leads in expected position|]{change}.",
            "[There is|Note is made of] a {side} [-sided|chest wall|pectoral] pacemaker{change}.",
        ],
        [],
        ["pacemaker in place"],
        [],
    ),
    "endotracheal tube": (
        "degree",
        [
            "[The|An] endotracheal tube [terminates|ends|projects] [{tip} cm above the carina|above the carina|in the "
            "mid trachea]{change}.",
            "[The tip of the|] endotracheal tube [is|lies] [{tip} cm|approximately {tip} cm] above the carina{change}.",
        ],
        [],
        ["endotracheal tube in [good|appropriate|satisfactory] position"],
        [],
    ),
    "enteric tube": (
        "degree",
        [
            "[The|{A}] [enteric|nasogastric|orogastric] tube [courses|extends|passes] below the diaphragm [with its "
            "tip in the stomach|and into the stomach|]{change}.",
            "[Enteric|Nasogastric] tube tip [projects over|is in|lies in] the stomach{change}.",
        ],
        [],
        ["enteric tube in the stomach"],
        [],
    ),
    "central venous catheter": (
        "degree",
        [
            "[A|The] {side} [-sided|internal jugular|] central venous catheter [terminates|ends|projects] [in|over] "
            "the [superior vena cava|lower superior vena cava|SVC]{change}.",
            "{Side} [internal jugular|central venous] [catheter|line] tip [is in|projects over|lies in] the [superior "
            "vena cava|SVC]{change}.",
        ],
        [],
        ["central venous catheter in place"],
        [],
    ),
    "port": (
        "degree",
        [
            "[A|The] {side} [chest wall|chest|-sided] port catheter [terminates|ends] in the [superior vena "
            "cava|SVC]{change}.",
            "{Side} [chest|chest wall] port catheter tip [is in|projects over] the [superior vena cava|SVC]{change}.",
        ],
        [],
        ["{side} chest port in place"],
        [],
    ),
    "chest tube": (
        "degree",
        [
            "[A|The] {side} [chest tube|thoracostomy tube|pleural drain] [is in place|is present|projects over the "
            "{side} lung]{change}.",
            "{Side} [chest tube|pleural drain] [is noted|is seen|in place]{change}.",
        ],
        [],
        ["{side} chest tube in place"],
        [],
    ),
    "sternotomy wires": (
        "degree",
        [
            "[Median sternotomy wires|Sternotomy wires|Midline sternal wires] are [intact|in place|present|noted|aligned]{change}."
        ],
        [],
        ["sternotomy wires"],
        [],
    ),
}

NORMAL = {
    "lungs clear": [
        "[The lungs are|Both lungs are|Lungs are|The lungs remain] [clear|clear bilaterally|well expanded and "
        "clear|well aerated and clear|clear of focal consolidation|clear without focal consolidation].",
        "[There is no|No evidence of|There is no evidence of] focal [consolidation|airspace consolidation|airspace "
        "disease|airspace opacity].",
        "No focal [consolidation|airspace consolidation|airspace disease|airspace opacity][ is seen| is identified|].",
        "[No|There is no] focal [consolidation|opacity] or [pulmonary edema|edema|nodule].",
        "[Lung volumes are normal and the|The lungs are normally expanded and the] lung fields are clear.",
    ],
    "rest of the lungs clear": [
        "[The lungs are otherwise clear|Otherwise, the lungs are clear|The remainder of the lungs is clear|The "
        "remaining lungs are clear].",
        "[No other|There is no other] focal [abnormality|lung abnormality].",
    ],
    "no consolidation": [
        "[There is no|No] focal [consolidation|airspace consolidation].",
        "[No evidence of|There is no evidence of] [pneumonia|focal consolidation].",
    ],
    "no edema": ["[There is no|No|No evidence of] [pulmonary|overt pulmonary|] edema."],
    "no effusion or pneumothorax": [
        "[There is no|No evidence of|There is no evidence of] [pleural effusion or pneumothorax|pneumothorax or "
        "pleural effusion|effusion or pneumothorax].",
        "No [pleural effusion or pneumothorax|pneumothorax or pleural effusion|effusion or pneumothorax][ is seen| is "
        "identified|].",
        "[The costophrenic angles are sharp and there is no pneumothorax|The pleural spaces are clear without "
        "effusion or pneumothorax|There is neither pleural effusion nor pneumothorax].",
    ],
    "no effusion": [
        "[There is no|No|No evidence of] [pleural effusion|effusion].",
        "The [costophrenic angles are|pleural spaces are] clear.",
    ],
    "no pneumothorax": ["[There is no|No|No evidence of] [visible|] pneumothorax."],
    "heart normal": [
        "[The heart size|Heart size|The cardiac silhouette|The size of the heart|The cardiac size] is [normal|within "
        "normal limits|not enlarged|unremarkable].",
        "[The heart is|Heart is] [normal in size|not enlarged|of normal size].",
    ],
    "mediastinum normal": [
        "[The mediastinal contours are|Mediastinal contours are|The mediastinal and hilar contours are|The hilar and "
        "mediastinal contours are] [normal|unremarkable|within normal limits].",
        "[The mediastinum is|The mediastinal silhouette is] [unremarkable|not widened|normal].",
    ],
    "heart and mediastinum normal": [
        "[The cardiomediastinal silhouette|Cardiomediastinal silhouette|The cardiomediastinal contour] is "
        "[normal|within normal limits|unremarkable].",
        "[Heart size and mediastinal contours|The heart and mediastinum|Cardiac and mediastinal contours] are "
        "[normal|within normal limits|unremarkable].",
    ],
    "bones normal": [
        "[No acute|There is no acute] [osseous|bony|skeletal] abnormality.",
        "[The osseous structures|The bony structures|The visualized bones|Visualized osseous structures] are "
        "[intact|unremarkable|normal].",
        "No [displaced|acute] [rib|] fracture[ is seen| is identified|].",
    ],
    "no devices": ["No [support devices|lines or tubes] [are seen|are present]."],
}
LOOK_ALIKE_SENTENCES = {
    "nipple shadow": ["[Nipple shadows project|A nipple shadow projects] over the [lung base|lower lung]."],
    "skin fold": ["A skin fold projects over the {side} [lung|hemithorax]."],
}
NORMAL_IMPRESSION = [
    "[No acute|No evidence of acute|No radiographic evidence of acute] cardiopulmonary [process|abnormality|disease].",
    "[Normal chest radiograph|Normal chest|Normal study|Unremarkable chest radiograph].",
    "No acute [findings|abnormality|intrathoracic abnormality].",
]
RESOLVED = "[Previously seen|The previously seen|The prior] {what} [has resolved|is no longer seen|has cleared]."
RESOLVED_NAMES = {
    "Cardiomegaly": "enlargement of the heart",
    "Enlarged Cardiomediastinum": "mediastinal widening",
    "Lung Opacity": "opacity",
    "Lung Lesion": "nodule",
    "Edema": "edema",
    "Consolidation": "consolidation",
    "Pneumonia": "pneumonia",
    "Atelectasis": "atelectasis",
    "Pneumothorax": "pneumothorax",
    "Pleural Effusion": "pleural effusion",
    "Pleural Other": "pleural thickening",
    "Fracture": "fracture",
}
INDICATIONS = {
    "": [
        "Routine examination.",
        "Preoperative evaluation.",
        "Chest pain.",
        "Cough.",
        "Shortness of breath.",
        "Follow-up.",
        "Evaluate for acute process.",
        "Fever.",
        "Weakness.",
        "Dyspnea.",
    ],
    "Pneumonia": ["Cough and fever.", "Fever, evaluate for pneumonia.", "Productive cough."],
    "Consolidation": ["Cough and fever.", "Fever and leukocytosis."],
    "Edema": ["Shortness of breath.", "Congestive heart failure.", "Dyspnea on exertion."],
    "Cardiomegaly": ["Shortness of breath.", "Hypertension.", "Heart failure."],
    "Pneumothorax": ["Sudden chest pain.", "Status post procedure.", "Trauma."],
    "Fracture": ["Trauma.", "Fall.", "Motor vehicle accident."],
    "Lung Lesion": ["Weight loss.", "History of smoking.", "Hemoptysis."],
    "Support Devices": ["Line placement.", "Status post intubation.", "Status post surgery."],
}


@dataclass
class Sentence:
    """One sentence of a report and what the reader looks at for it."""

    text: str
    topic: str
    findings: list[Finding] = field(default_factory=list)


_BRACKET = re.compile(r"\[([^\[\]]*)\]")


def expand(rng: np.random.Generator, template: str, slots: dict[str, str] | None = None) -> str:
    """Draws one alternative of every bracket, fills the slots and puts spaces, articles and capitals right."""
    while match := _BRACKET.search(template):
        options = match.group(1).split("|")
        template = template[: match.start()] + options[int(rng.integers(len(options)))] + template[match.end() :]
    for name, value in (slots or {}).items():
        template = template.replace("{" + name + "}", value)
        template = template.replace("{" + name.capitalize() + "}", value)
    template = re.sub(r"\s+", " ", template).strip().replace(" ,", ",").replace(" .", ".").replace(" -sided", "-sided")
    template = re.sub(r"\{a\} (?=[aeiouAEIOU])", "an ", template).replace("{a}", "a")
    template = re.sub(r"\{A\} (?=[aeiouAEIOU])", "An ", template).replace("{A}", "A")
    template = re.sub(r"\b([Aa])n? bilateral pleural effusion\b", "bilateral pleural effusions", template)
    template = re.sub(
        r"\b[Aa]n? (\w+(?:[ -]\w+)?) bilateral pleural effusion\b", r"\1 bilateral pleural effusions", template
    )
    template = re.sub(r"\bbilateral pleural effusion\b", "bilateral pleural effusions", template)
    template = re.sub(r"\b[Tt]here is ((?:\w+(?:-\w+)? ){0,2}bilateral pleural effusions)", r"There are \1", template)
    template = re.sub(r"(bilateral pleural effusions) is\b", r"\1 are", template)
    template = re.sub(r"(bilateral pleural effusions, which) has\b", r"\1 have", template)
    return template[:1].upper() + template[1:]


def _slots(rng: np.random.Generator, finding: Finding, anatomy: Anatomy) -> dict[str, str]:
    scale = PHRASES[finding.kind if finding.kind in PHRASES else finding.category][0]
    words = SEVERITY[scale][finding.severity]
    severity = str(words[int(rng.integers(len(words)))])
    side, zone = finding.side, finding.zone
    part = {"upper": "upper", "mid": "mid", "lower": "lower", None: ""}[zone]
    if side == "bilateral":
        place = (
            expand(rng, f"[both {part} lungs|both {part} lung zones|the bilateral {part} lungs]")
            if part
            else "both lungs"
        )
        where = expand(rng, f"[bilateral|bilateral {part} lung]")
    elif side is None:
        place, where = "the lungs", ""
    elif part == "mid":
        lobe = "right middle lobe|" if side == "right" else ""
        place = expand(rng, f"the [{lobe}{side} mid lung|{side} mid lung zone|{side} midlung]")
        where = f"{side} mid lung"
    elif part:
        extra = f"|{side} lung base" if part == "lower" else f"|{side} lung apex" if finding.place[1] < 0.2 else ""
        place = expand(rng, f"the [{side} {part} lobe|{side} {part} lung zone|{side} {part} lung{extra}]")
        where = expand(rng, f"[{side} {part} lobe|{side} {part} lung]")
    else:
        place, where = f"the {side} lung", side
    place = place[0].lower() + place[1:]
    where = where[:1].lower() + where[1:]
    base = {"bilateral": "[bibasilar|bilateral basilar]"}.get(side, f"[{side} basilar|{side} lower lobe|{side} basal]")
    bases = {"bilateral": "[both lung bases|the lung bases]"}.get(side, f"[the {side} lung base|the {side} base]")
    change = ""
    if finding.change:
        options = CHANGES[finding.change]
        change = expand(rng, options[int(rng.integers(len(options)))])
    adverb = {
        "minimal": "minimally",
        "slight": "slightly",
        "subtle": "slightly",
        "severe": "severely",
        "marked": "markedly",
        "mild": "mildly",
        "moderate": "moderately",
    }.get(severity, "")
    # the width of a chest film is about 40 cm
    millimetres = 800 * (lesion_radius(finding.kind, finding.strength) if finding.category == "Lung Lesion" else 0.01)
    rounded = max(5, round(millimetres))
    size = f"{rounded} mm" if rounded < 30 else f"{rounded / 10:.1f} cm"
    first = {"upper": 3, "mid": 5, "lower": 7}.get(zone, 5)
    ordinal = ("", "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
    several = finding.count > 1
    if finding.kind == "rib fracture":
        if several:
            ofribs = expand(
                rng,
                f"of the {side} [{ordinal[first]} through {ordinal[first + finding.count - 1]}|lateral|{finding.zone}] ribs".replace(
                    "|mid]", "|middle]"
                ),
            )
        else:
            ofribs = expand(rng, f"of the {side} [{ordinal[first]}|lateral {ordinal[first]}] rib")
        ofribs = ofribs[0].lower() + ofribs[1:]
    else:
        ofribs = ""
    displacement = (
        "nondisplaced"
        if finding.severity == 0
        else ("minimally displaced", "mildly displaced")[int(rng.integers(2))]
        if finding.severity == 1
        else "displaced"
    )
    article = "" if several else "a " if rng.random() < 0.5 else "an acute "
    return {
        "severity": severity,
        "side": side or "",
        "place": place,
        "where": where,
        "base": _lower(expand(rng, base)),
        "bases": _lower(expand(rng, bases)),
        "change": _lower(change),
        "adverb": adverb,
        "size": size,
        "displaced": f"{article}{displacement}",
        "nondisplaced": "nondisplaced",
        "fracture": "fractures" if several else "fracture",
        "fractures": "fractures" if several else "fracture",
        "isare": "are" if several else "is",
        "ofribs": ofribs,
        "tip": f"{rng.uniform(2, 6):.0f}",
    }


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _pick(rng: np.random.Generator, options: list[str]) -> str:
    return options[int(rng.integers(len(options)))]


def finding_sentence(rng: np.random.Generator, finding: Finding, anatomy: Anatomy) -> str:
    """A sentence of the findings section about one finding."""
    _, sure, unsure, _, _ = PHRASES[finding.kind if finding.kind in PHRASES else finding.category]
    return expand(rng, _pick(rng, unsure if finding.hedged else sure), _slots(rng, finding, anatomy))


def short_form(rng: np.random.Generator, finding: Finding, anatomy: Anatomy) -> str:
    """The finding as the impression names it."""
    _, _, _, sure, unsure = PHRASES[finding.kind if finding.kind in PHRASES else finding.category]
    return expand(rng, _pick(rng, unsure if finding.hedged else sure), {**_slots(rng, finding, anatomy), "change": ""})


def write_report(
    rng: np.random.Generator,
    findings: list[Finding],
    resolved: list[Finding],
    anatomy: Anatomy,
    topic_order: list[str],
    terse: float,
) -> tuple[list[Sentence], list[Sentence]]:
    """Sentences of the findings section, in the reader's order of topics, and of the impression.

    Args:
        rng: source of choices.
        findings: of the film.
        resolved: findings of the prior film that are gone.
        anatomy: of the film.
        topic_order: `TOPICS` in the order in which this reader speaks of them.
        terse: 0 wordy ... 1 terse: the share of normal statements left out.
    """
    present = {finding.category for finding in findings}
    gone = {finding.category for finding in resolved}
    sentences: list[Sentence] = []

    def normal(key: str, topic: str, chance: float = 1.0) -> None:
        if rng.random() < chance * (1.0 - 0.4 * terse):
            sentences.append(Sentence(expand(rng, _pick(rng, NORMAL[key])), topic))

    lung_names = {"Lung Opacity", "Lung Lesion", "Edema", "Consolidation", "Pneumonia", "Atelectasis"}
    together = not present & {"Cardiomegaly", "Enlarged Cardiomediastinum"} and rng.random() < 0.5
    joint_done = False
    for topic in topic_order:
        own = [finding for finding in findings if TOPIC_OF[finding.category] == topic]
        for finding in sorted(own, key=lambda item: -item.strength):
            sentences.append(Sentence(finding_sentence(rng, finding, anatomy), topic, [finding]))
        for finding in resolved:
            if (
                TOPIC_OF[finding.category] == topic
                and finding.category in RESOLVED_NAMES
                and finding.category not in present
            ):
                sentences.append(Sentence(expand(rng, RESOLVED, {"what": RESOLVED_NAMES[finding.category]}), topic))
        if topic == "lungs":
            if not present & lung_names:
                if not gone & lung_names:
                    normal("lungs clear", topic, 1.4)
                    if rng.random() < 0.15:
                        normal("no edema", topic)
                else:
                    normal("lungs clear", topic, 0.6)
            elif not present & {"Consolidation", "Pneumonia", "Lung Opacity"} and rng.random() < 0.5:
                normal("no consolidation", topic)
            elif "Edema" not in present and rng.random() < 0.6:
                normal("no edema" if rng.random() < 0.4 else "rest of the lungs clear", topic)
        elif topic == "pleura":
            effusion, air = "Pleural Effusion" in present, "Pneumothorax" in present
            if not effusion and not air:
                normal("no effusion or pneumothorax", topic, 1.4)
            elif not effusion:
                normal("no effusion", topic, 0.8)
            elif not air:
                normal("no pneumothorax", topic, 1.1)
        elif topic in ("heart", "mediastinum"):
            if together:
                if not joint_done:
                    normal("heart and mediastinum normal", topic, 1.5)
                joint_done = True
            elif topic == "heart" and "Cardiomegaly" not in present:
                normal("heart normal", topic, 1.3)
            elif topic == "mediastinum" and "Enlarged Cardiomediastinum" not in present:
                normal("mediastinum normal", topic, 0.8)
        elif topic == "bones" and "Fracture" not in present:
            normal("bones normal", topic, 0.6)
        elif topic == "devices" and "Support Devices" not in present:
            normal("no devices", topic, 0.04)
    for item in anatomy.look_alikes:
        if item["kind"] in LOOK_ALIKE_SENTENCES and rng.random() < 0.5:
            sentences.append(
                Sentence(expand(rng, _pick(rng, LOOK_ALIKE_SENTENCES[item["kind"]]), {"side": item["side"]}), "lungs")
            )
            break
    if not sentences:
        sentences.append(Sentence(expand(rng, _pick(rng, NORMAL["lungs clear"])), "lungs"))

    impression: list[Sentence] = []
    ranked = sorted((f for f in findings if f.category != "Support Devices"), key=lambda f: (f.hedged, -f.strength))
    devices = [f for f in findings if f.category == "Support Devices"]
    if not ranked:
        impression.append(
            Sentence(
                expand(
                    rng, _pick(rng, NORMAL_IMPRESSION[:1] + NORMAL_IMPRESSION[2:] if devices else NORMAL_IMPRESSION)
                ),
                "lungs",
            )
        )
        if devices and rng.random() < 0.4:
            impression.append(
                Sentence(expand(rng, short_form(rng, devices[0], anatomy)) + ".", "devices", [devices[0]])
            )
    else:
        kept = ranked[: 3 if rng.random() < 0.7 else 2]
        if len(kept) > 1 and rng.random() < 0.4:
            joined = short_form(rng, kept[0], anatomy) + " and " + _lower(short_form(rng, kept[1], anatomy)) + "."
            impression.append(Sentence(joined, "lungs", kept[:2]))
            kept = kept[2:]
        for finding in kept:
            impression.append(Sentence(short_form(rng, finding, anatomy) + ".", TOPIC_OF[finding.category], [finding]))
    return sentences, impression


def indication(rng: np.random.Generator, findings: list[Finding]) -> str:
    """Why the film was asked for."""
    for finding in findings:
        if finding.category in INDICATIONS and rng.random() < 0.5:
            return _pick(rng, INDICATIONS[finding.category])
    return _pick(rng, INDICATIONS[""])


QUESTION_NAMES = {
    "Enlarged Cardiomediastinum": ["a widened mediastinum", "mediastinal widening"],
    "Cardiomegaly": ["cardiomegaly", "an enlarged heart"],
    "Lung Opacity": ["a lung opacity", "an opacity"],
    "Lung Lesion": ["a lung nodule or mass", "a lung lesion"],
    "Edema": ["pulmonary edema", "edema"],
    "Consolidation": ["consolidation", "a consolidation"],
    "Pneumonia": ["pneumonia", "a sign of pneumonia"],
    "Atelectasis": ["atelectasis"],
    "Pneumothorax": ["a pneumothorax", "pneumothorax"],
    "Pleural Effusion": ["a pleural effusion", "pleural effusion"],
    "Pleural Other": ["pleural thickening or plaque"],
    "Fracture": ["a fracture", "a bone fracture"],
    "Support Devices": ["a support device", "a line, tube or implanted device"],
}


def questions(
    rng: np.random.Generator, findings: list[Finding], labels: list[int | None], anatomy: Anatomy
) -> list[dict[str, str]]:
    """Closed and open questions about the film with their answers: presence, side, place, severity, view, count, change."""
    asked: list[dict[str, str]] = []
    present = [name for name, value in zip(FINDINGS, labels, strict=True) if value == 1 and name in QUESTION_NAMES]
    absent = [name for name, value in zip(FINDINGS, labels, strict=True) if value == 0 and name in QUESTION_NAMES]
    chosen = [present[int(rng.integers(len(present)))]] if present else []
    chosen += [absent[int(k)] for k in rng.choice(len(absent), size=min(len(absent), 2 - len(chosen)), replace=False)]
    for name in chosen:
        what = _pick(rng, QUESTION_NAMES[name])
        text = expand(rng, f"[Is there {what}?|Does the film show {what}?|Is {what} present?]")
        asked.append({"question": text, "answer": "Yes." if name in present else "No."})
    sure = [finding for finding in findings if not finding.hedged]
    located = [f for f in sure if f.side in SIDES and f.category in QUESTION_NAMES and f.category != "Support Devices"]
    if located:
        finding = located[int(rng.integers(len(located)))]
        name = finding.kind if finding.kind != "effusion" else "pleural effusion"
        same = {f.side for f in sure if f.kind == finding.kind}
        if len(same) == 1 and rng.random() < 0.5:
            asked.append({"question": f"On which side is the {name}?", "answer": f"{finding.side.capitalize()}."})
        elif finding.zone:
            asked.append(
                {
                    "question": f"Where is the {name}?",
                    "answer": f"In the {finding.side} {finding.zone} lung zone."
                    if finding.category in (*AIRSPACE, "Lung Lesion", "Atelectasis")
                    else f"On the {finding.side}.",
                }
            )
    graded = [f for f in sure if f.category in ("Pleural Effusion", "Pneumothorax", "Cardiomegaly", "Edema")]
    if graded and rng.random() < 0.5:
        finding = graded[int(rng.integers(len(graded)))]
        asked.append(
            {
                "question": f"How severe is the {finding.category.lower()}?",
                "answer": ("Minimal.", "Mild.", "Moderate.", "Severe.")[finding.severity],
            }
        )
    changed = [f for f in sure if f.change in ("increased", "decreased", "unchanged") and f.category in RESOLVED_NAMES]
    if changed and rng.random() < 0.7:
        finding = changed[int(rng.integers(len(changed)))]
        asked.append(
            {
                "question": f"How has the {RESOLVED_NAMES[finding.category]} changed since the prior film?",
                "answer": f"{finding.change.capitalize()}.",
            }
        )
    if rng.random() < 0.2:
        asked.append({"question": "Is this a PA or an AP view?", "answer": f"{anatomy.view}."})
    if rng.random() < 0.35:
        names = list(dict.fromkeys(name.lower() for name in present))
        answer = "No abnormality." if not names else ", ".join(names).capitalize() + "."
        if not any(finding.hedged for finding in findings):
            asked.append({"question": "What abnormalities are seen?", "answer": answer})
    return asked
